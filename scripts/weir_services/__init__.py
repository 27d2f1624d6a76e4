# The servers that tests and demos need, run natively on loopback: Kafka, Redis, S3, PostgreSQL, MLflow.
