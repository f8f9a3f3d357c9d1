# make book   builds the book into _build/html      make test   runs every check
# make help   lists the rest. Both commands set up what they need in .venv by themselves.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.ready
CHAPTER ?= all

.PHONY: help setup book test notebooks assignments slides claims bench pictures train serve clean
help:        ## list the targets
	@grep -E '^[a-z]+: .*##' Makefile | sed -E 's/: [^#]*## /\t/' | expand -t 12

setup: $(READY)          ## make .venv with the exact tested versions
$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet uv
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(RUN) -m uv pip install --quiet --compile-bytecode \
		--python $(RUN) -r requirements.txt -e . --no-build-isolation-package stylemoments
	touch $@

book: $(READY)           ## build the book: _build/html/index.html
	$(VENV)/bin/jupyter-book build . -W --keep-going --quiet

test: $(READY) book      ## unit, notebook, book and browser tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests lib --numprocesses=auto --dist=loadfile
	OMP_NUM_THREADS=1 $(RUN) -m pytest notebooks --nbval-lax --numprocesses=auto --dist=loadscope

notebooks: $(READY)      ## run book/chapters into notebooks/ (CHAPTER=01-normalization for one)
	$(RUN) book/_tools/notebooks.py $(CHAPTER)

assignments: $(READY)    ## make the student notebooks in assignments/ from classroom/source
	$(RUN) -m stylemoments.classroom.release

slides: $(READY)         ## make the decks for teaching: _build/slides/1-moments.html and so on
	$(RUN) book/_tools/slides.py

claims: notebooks        ## measure every claim again and write book/claims.yml
	$(RUN) book/_tools/claims.py

bench: $(READY)          ## speed as ratios against named baselines
	$(RUN) tests/bench.py

pictures: $(READY)       ## make the pictures of README and welcome page
	$(RUN) book/_tools/pictures.py

train: $(READY)          ## train the shipped models again: hours; stop it, call it again, and it goes on
	$(RUN) -m stylemoments.train.autoencoder --out runs/autoencoder
	$(RUN) -m stylemoments.train.clip --out runs/clip
	$(RUN) -m stylemoments.train.denoiser --out runs/denoiser --autoencoder runs/autoencoder --clip runs/clip
	$(RUN) -m stylemoments.train.judge --out runs/judge
	$(RUN) -m stylemoments.train.dino --out runs/dino
	$(RUN) -m stylemoments.train.subject --out runs/subject
	$(RUN) -m stylemoments.train.vgg --out runs/vgg
	$(RUN) -m stylemoments.train.ship runs
	$(RUN) -m stylemoments.train.adain --out runs/adain
	$(RUN) -m stylemoments.train.control --out runs/control
	$(RUN) -m stylemoments.train.ship runs
	$(RUN) -m stylemoments.train.measure

serve: book              ## read the book at http://localhost:8000
	$(RUN) -m http.server 8000 --bind localhost --directory _build/html

clean:                   ## remove the built book (the environment stays)
	rm -rf _build
