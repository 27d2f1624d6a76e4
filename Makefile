# Every target is one line; the work is done by a script in scripts/
# Arguments are passed in ARGS: make run ARGS="--listen 127.0.0.1:9000"
.PHONY: help run demo onnxruntime kernels gpu-folder services services-down test faults fuzz bench compare-cpu gpu-test lint fmt doctor clean
.DEFAULT_GOAL := help

help: ## Show this list
	@scripts/help

run: ## Install what is missing, build, start the appliance and classify a picture (Ctrl-C ends it)
	@scripts/run $(ARGS)

demo: ## The same, but stop after the answer
	@scripts/demo $(ARGS)

onnxruntime: ## Fetch libonnxruntime into the cache
	@scripts/fetch-onnxruntime

kernels: ## Compile the CUDA kernels anew (no GPU is needed)
	@scripts/kernels $(ARGS)

gpu-folder: ## Make the folder with which the GPU suite runs on another machine (docs/gpu/)
	@scripts/gpu-folder $(ARGS)

services: ## Start Kafka, Redis, S3, PostgreSQL and MLflow on loopback (docs/services.md)
	@scripts/services up $(ARGS)

services-down: ## Stop exactly those
	@scripts/services down $(ARGS)

test: ## Every check and every test
	@scripts/test

faults: ## The fault suites in full: kills, restores, clones, clock steps, lost writes (about an hour)
	@scripts/faults

fuzz: ## Fuzz every target for WEIR_FUZZ_SECONDS (an hour), or one: make fuzz ARGS="decode_png 600"
	@scripts/fuzz $(ARGS)

bench: ## Measure throughput and latency against the limits and the peer
	@scripts/bench $(ARGS)

compare-cpu: ## Compare the CPU time of a request with another revision's: ARGS=REVISION
	@scripts/compare-cpu $(ARGS)

gpu-test: ## Check and measure everything that runs on this machine's NVIDIA GPU (docs/gpu/suite.md)
	@scripts/gpu-test $(ARGS)

lint: ## Formatting, clippy and shellcheck, changing nothing
	@scripts/lint

fmt: ## Format the Rust sources
	@scripts/fmt

doctor: ## Say what is configured, what works and what does not
	@scripts/doctor $(ARGS)

clean: ## Remove the build output (downloads and data stay)
	@scripts/clean
