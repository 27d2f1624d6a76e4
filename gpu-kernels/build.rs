//! Compiles the C side of the JPEG decoder against the libjpeg-turbo that `turbojpeg-sys` builds.

fn main() {
    let source = "src/decode/jpeg/turbo.c";
    println!("cargo::rerun-if-changed={source}");
    let mut build = cc::Build::new();
    for folder in std::env::var("DEP_TURBOJPEG_INCLUDE").unwrap_or_default().split(',') {
        build.include(folder);
    }
    // setjmp with plain locals: nothing that is read after a jump changes between the two.
    build.file(source).opt_level(2).warnings(true).compile("weir_jpeg");
}
