"""``python -m fuzz``, in the directory of the tests. See docs/fuzzing.md."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import traceback
from pathlib import Path

from fuzz import corpus, engines
from fuzz.targets import TARGETS


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """0 when nothing was found."""
    options = _options(arguments)
    if options.replay:
        return _replay(options.replay, options.targets)
    if options.add:
        return _add(options.add, options.targets)
    if options.minimise:
        return max(_rewrite(target, []) for target in options.targets)
    return max(_search(target, options) for target in options.targets)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=300.0, help="in all (300)")
    parser.add_argument("--engine", choices=["auto", "atheris", "random"], default="auto")
    parser.add_argument("--seed", default=os.environ.get("GNATS_SEED") or secrets.token_hex(4))
    parser.add_argument("--grow", action="store_true", help="keep inputs that go new ways")
    parser.add_argument("--minimise", action="store_true", help="only keep what is worth its room")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input")
    parser.add_argument("--add", type=Path, metavar="FILE", help="keep one input for good")
    options = parser.parse_args(arguments)
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    options.targets = options.targets or list(TARGETS)
    options.guided = options.engine == "atheris"
    if options.engine == "auto":
        options.guided = engines.has_atheris()
    return options


def _search(target: str, options: argparse.Namespace) -> int:
    seconds = options.seconds / len(options.targets)
    engine = "atheris" if options.guided else "mutation at random, without atheris"
    say(f"{target}: {engine}, for {seconds:.1f} s; repeat with --seed {options.seed}")
    search = engines.with_atheris if options.guided else engines.at_random
    result = search(target, options.seed, seconds)
    say(f"{target}: {result.runs} runs, {len(result.inputs)} went new ways")
    if result.finding is not None:
        _tell(target, result.finding)
        return 1
    return _rewrite(target, result.inputs) if options.grow else 0


def _rewrite(target: str, more: list[bytes]) -> int:
    try:
        before, now = corpus.rewrite(target, more)
    except AssertionError as exc:
        say(f"{target}: mend this first: {exc}")
        return 1
    say(f"{target}: {now} inputs are kept, {before} were")
    return 0


def _tell(target: str, data: bytes) -> None:
    """Keep a finding, as short as it can be, and say how to see it again."""
    if engines.fails(target, data):
        data = corpus.shrink(data, lambda shorter: engines.fails(target, shorter))
    else:
        say(f"{target}: it took a minute, or a lot of memory")
    say(f"{target}: FOUND {data!r}")
    file = corpus.keep(target, data, found=True)
    _replay(file, [target])
    say(f"kept; again: python -m fuzz --replay {os.path.relpath(file)}")


def _target_of(file: Path, targets: list[str]) -> str:
    """The one that was named, or the one in whose directory the file lies."""
    target = targets[0] if len(targets) == 1 else file.resolve().parent.name
    if target not in TARGETS:
        raise SystemExit(f"which target is {file} for? Name it, too")
    return target


def _replay(file: Path, targets: list[str]) -> int:
    target = _target_of(file, targets)
    try:
        TARGETS[target](file.read_bytes())
    except AssertionError:
        say(traceback.format_exc())
        return 1
    say(f"{target}: {file.name} is as it should be")
    return 0


def _add(file: Path, targets: list[str]) -> int:
    kept = corpus.keep(_target_of(file, targets), file.read_bytes(), found=True)
    say(f"kept as {os.path.relpath(kept)}")
    return _replay(kept, targets)


if __name__ == "__main__":
    sys.exit(main())
