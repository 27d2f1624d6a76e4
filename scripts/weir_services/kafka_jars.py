# Kafka's jars in the cache, from Maven Central by mvn, and the Java command lines that run its broker and its tools.
import os

from . import install, places
from .errors import ServiceError
from .server import bare_environment

POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>weir</groupId>
  <artifactId>kafka-jars</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_{scala}</artifactId>
      <version>{version}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka-tools</artifactId>
      <version>{version}</version>
      <exclusions>
{exclusions}      </exclusions>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>{log4j}</version>
    </dependency>
  </dependencies>
</project>
"""
# Kafka Connect with its web server is not needed.
EXCLUDED = ("connect-api", "connect-json", "connect-runtime", "connect-transforms")
EXCLUSION = """        <exclusion>
          <groupId>org.apache.kafka</groupId>
          <artifactId>{}</artifactId>
        </exclusion>
"""
LOGGING = """status = error
appender.console.type = Console
appender.console.name = console
appender.console.target = {target}
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{{ISO8601}} %-5p %c{{1}}: %m%n
rootLogger.level = {level}
rootLogger.appenderRef.console.ref = console
"""


class Java:
    """Java, checked to be new enough, and the jars."""

    def __init__(self):
        pins = places.pins("kafka")
        self.program = install.tool("java", "default-jre-headless")
        found = install.version_of([self.program, "-version"], r'version "([\d.]+)')
        if found < (int(pins["java"]),):
            version = ".".join(map(str, found))
            raise ServiceError(
                f"{self.program} is Java {version}: Kafka {pins['version']} needs {pins['java']} or newer"
            )
        exclusions = "".join(EXCLUSION.format(name) for name in EXCLUDED)
        pom = POM.format(scala=pins["scala"], version=pins["version"], log4j=pins["log4j"], exclusions=exclusions)
        title = f"fetching Kafka {pins['version']}"
        self.jars = install.cached(title, pom, "kafka", pins["version"])(lambda folder: _fill(folder, pom))()

    def _run(self, logging, options, main, arguments):
        config = f"-Dlog4j2.configurationFile={os.path.join(self.jars, logging)}"
        return [self.program, *options, config, "-cp", os.path.join(self.jars, "jars", "*"), main, *arguments]

    def broker(self, properties):
        """The broker's command line and environment."""
        options = ["-XX:TieredStopAtLevel=1", "-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-Djava.awt.headless=true"]
        return self._run("broker.properties", options, "kafka.Kafka", [properties]), bare_environment()

    def tool(self, main, *arguments):
        """The same for a short-lived tool, optimised for a fast start."""
        options = ["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
        return self._run("tool.properties", options, main, arguments)


def _fill(folder, pom):
    with open(os.path.join(folder, "pom.xml"), "w", encoding="utf-8") as file:
        file.write(pom)
    for name, level, target in (("broker", "info", "SYSTEM_OUT"), ("tool", "warn", "SYSTEM_ERR")):
        with open(os.path.join(folder, f"{name}.properties"), "w", encoding="utf-8") as file:
            file.write(LOGGING.format(level=level, target=target))
    maven = install.tool("mvn", "maven")
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}/jars"]
    failure = "mvn could not fetch Kafka's jars: is the repository that it is configured for reachable?"
    install.run([maven, "-B", "-q", "-ntp", *goal], failure, cwd=folder)
