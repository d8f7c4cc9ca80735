# MODE=rootless (default): this user, one directory, loopback. MODE=system: units, users and firewall, by sudo.
export MODE ?= rootless
SHELL := /bin/bash

.PHONY: help up down status clean test test-heavy lint bench lock
.DEFAULT_GOAL := help

help: ## say what there is
	@awk -F ': ## ' '/^[a-z-]+: ## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## provision this machine and smoke-test it; prints URL, token file and a curl
	@release/up.sh

down: ## stop every service, keep the data
	@release/play.sh playbooks/down.yml

status: ## say of each listener whether it answers
	@release/play.sh playbooks/status.yml

clean: ## stop and remove all that `make` made, data too
	@release/clean.sh

test: ## run every test there is, and say what could not be run
	@release/bootstrap.sh test && .venv/bin/python -m tests.run

test-heavy: ## run the large tests: the real OptiLLM and InvokeAI (some GB of disk), all cases of what is else sampled
	@release/bootstrap.sh test && .venv/bin/python -m tests.run heavy

lint: ## run the linters only
	@release/bootstrap.sh test && .venv/bin/python -m tests.run lint

bench: ## print the gateway's figures beside a peer's
	@release/bootstrap.sh test && .venv/bin/python -m tests.bench

lock: ## resolve the dependencies again; release/lock.sh --upgrade takes the newest
	@release/bootstrap.sh test && release/lock.sh
