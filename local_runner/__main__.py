"""`python -m local_runner BUNDLE`: serve a bundle over gRPC and HTTP."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from local_runner.bundle import manifest
from local_runner.flags import serving
from local_runner.flags.flag import Parser, add
from local_runner.process import leash, ready_file
from local_runner.replicas.local import options as local_options
from local_runner.replicas.ray import options as ray_options
from local_runner.telemetry import logs, terminal
from local_runner.telemetry.elapsed import elapsed

if TYPE_CHECKING:
    from local_runner.server import ServerSettings

_EXIT_CODES = """exit codes:
  0  stopped by a signal, every request answered
  1  stopped with requests abandoned, or an internal failure
  2  wrong arguments
  3  not a bundle, an edited bundle, a package missing, or a model that does not load
  4  a port in use, or no way to listen

Every option can be set in the environment: MII_AZURE_GRPC_PORT, MII_AZURE_HTTP_PORT, MII_AZURE_HOST, ...
"""


def main(argv: list[str] | None = None) -> NoReturn:
    """Serve, then end the process."""
    leash.hold_if_asked()
    parser = _parser()
    options = parser.parse_args(argv)
    options.ray = ray_options.read(parser, options)
    options.several = local_options.read(parser, options)
    if options.front_ends and (options.ray or options.several):
        parser.error("--front-ends is for one model: each replica has a process already")
    if options.ray and options.adapter_root:
        parser.error(
            "--adapter-root is for one machine: replicas in a Ray cluster serve the bundle's own adapters, which "
            "`mii-azure generate --adapters` takes"
        )
    options.command = (sys.executable, "-m", "local_runner", *(sys.argv[1:] if argv is None else argv))
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its notes, as of a fork, would stand between the lines
    logs.set_up(options.log_format, options.verbose)
    if options.otlp_endpoint:  # set in the environment, so that replicas inherit it
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = options.otlp_endpoint
    if options.served_name:  # front ends inherit it too
        os.environ[serving.SERVED_NAME.twin] = options.served_name
    if options.adapter_root or options.allow_adapters:  # and replicas
        told = {flag.twin: getattr(options, flag.variable) for flag in serving.ADAPTERS}
        os.environ |= {twin: str(value) for twin, value in told.items() if value}
    code = _serve(options)
    sys.stdout.flush()
    sys.stderr.flush()
    # The scoring script may own threads that never end; they must not keep a stopped runner alive.
    os._exit(code)


def _serve(options: argparse.Namespace) -> int:
    try:
        with elapsed(lambda: "starting", shown=options.log_format != "json"):
            settings = _settings(options)
        from local_runner.server import serve

        return serve(settings)
    except KeyboardInterrupt:  # before the event loop handled signals
        return 0
    except Exception as error:
        from scoring.errors import MiiAzureError

        error = _in_words(error)
        if not isinstance(error, MiiAzureError):
            logging.getLogger(__name__).critical("The runner failed.", exc_info=True)
            return 1
        logging.getLogger(__name__).debug("why:", exc_info=True)
        terminal.say(f"error [{error.code}]: {error}")
        ready_file.write(options.ready_file, "failed", **error.to_dict(), exit_code=error.exit_code)
        return error.exit_code


def _in_words(error: Exception) -> Exception:
    """The error to tell of one that the server ended with: memory that ran out as RunnerFailed, others as they are."""
    if isinstance(error, MemoryError) or (isinstance(error, ImportError) and "failed to map segment" in str(error)):
        from local_runner.errors import RunnerFailed

        return RunnerFailed(
            "Memory ran out before the model was loaded.",
            "Give the process more; a limit on it (ulimit -v) counts libraries too.",
        )
    return error


def _settings(options: argparse.Namespace) -> "ServerSettings":
    """Settings of the server, the bundle's files checked and its `scoring` the one that is imported."""
    bundle = options.bundle.resolve()
    manifest.enter(bundle)
    if options.several:  # gRPC does not survive the forks that start replicas, and need not log that
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    # Imported only now: these import `scoring`, and the bundle's own has to be the one found.
    from local_runner.access import security
    from local_runner.front_ends.number import number_of
    from local_runner.server import ServerSettings

    several = options.ray or options.several
    front_ends = 0 if several else number_of(options.front_ends, bundle / "code")
    files = security.SecurityFiles(options.tls_cert, options.tls_key, options.tls_client_ca, options.api_key_file)
    return ServerSettings(
        bundle,
        options.host,
        options.grpc_port,
        options.http_port,
        options.drain_seconds,
        options.ready_file,
        security.load(files),
        several,
        options.settings_file,
        front_ends,
        options.command,
        not options.no_page,
        options.cors_origins or "",
        options.log_format != "json",
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m local_runner",
        description="Serve a bundle's own score.py over gRPC and HTTP.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="the folder that `mii-azure generate` wrote")
    add(parser, (*serving.PEOPLE, *serving.PROGRAMS))
    add(parser, serving.LOCAL, "processes on this machine")
    add(parser, serving.RAY, "Ray Serve (--engine ray)")
    return parser


if __name__ == "__main__":
    main()
