# MODE=rootless (default): this user, one directory, loopback. MODE=system: units, users and firewall, by sudo.
export MODE ?= rootless
SHELL := /bin/bash

.PHONY: help up down status clean test test-heavy lint bench lock
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ': ## ' '/^[a-z-]+: ## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## provision this machine and smoke-test it; prints URL, token file and a curl
	@release/up.sh

down: ## stop every service, keep the data
	@release/play.sh playbooks/down.yml

status: ## show whether each listener answers
	@release/play.sh playbooks/status.yml

clean: ## stop and remove everything that `make` made, data too
	@release/clean.sh

test: ## run all tests, and name those that were skipped
	@release/bootstrap.sh test && .venv/bin/python -m tests.run

test-heavy: ## run the large tests: the real OptiLLM and InvokeAI (some GB of disk), and all cases of sampled tests
	@release/bootstrap.sh test && .venv/bin/python -m tests.run heavy

lint: ## run the linters only
	@release/bootstrap.sh test && .venv/bin/python -m tests.run lint

bench: ## print the gateway's figures beside a peer's
	@release/bootstrap.sh test && .venv/bin/python -m tests.bench

lock: ## resolve the dependencies again; release/lock.sh --upgrade takes the newest
	@release/bootstrap.sh test && release/lock.sh
