# The servers for tests and demos, run natively on loopback: Kafka, Redis, S3, PostgreSQL, MLflow.
