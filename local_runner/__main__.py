"""`python -m local_runner BUNDLE`: serve a bundle over gRPC and HTTP."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from local_runner.bundle import manifest
from local_runner.process import leash, ready_file
from local_runner.replicas.local import options as local_options
from local_runner.replicas.ray import options as ray_options
from local_runner.telemetry import logs, terminal

_EXIT_CODES = """exit codes:
  0  stopped by a signal, every request answered
  1  stopped with requests abandoned, or an internal failure
  2  wrong arguments
  3  not a bundle, an edited bundle, a package missing, or a model that does not load
  4  a port in use, or no way to listen

Every option can be set in the environment: MII_AZURE_GRPC_PORT, MII_AZURE_HTTP_PORT, MII_AZURE_HOST, ...
"""

_SECURITY = {
    "tls-cert": "PEM certificate chain of the server, for both ports",
    "tls-key": "PEM key of the certificate",
    "tls-client-ca": "PEM authorities; clients must then present a certificate of theirs",
    "api-key-file": "file of keys, one a line; requests must then carry one",
}


def main(argv: list[str] | None = None) -> NoReturn:
    """Serve, then end the process."""
    leash.hold_if_asked()
    parser = _parser()
    options = parser.parse_args(argv)
    options.ray = ray_options.read(parser, options)
    options.several = local_options.read(parser, options)
    logs.set_up(options.log_format, options.verbose)
    if options.otlp_endpoint:  # set in the environment, so that replicas inherit it
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = options.otlp_endpoint
    code = _serve(options)
    sys.stdout.flush()
    sys.stderr.flush()
    # The scoring script may own threads that never end; they must not keep a stopped runner alive.
    os._exit(code)


def _serve(options: argparse.Namespace) -> int:
    bundle = options.bundle.resolve()
    try:
        manifest.enter(bundle)
        if options.several:  # gRPC does not survive the forks that start replicas, and need not log that
            os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
        # Imported only now: these import `scoring`, and the bundle's own has to be the one found.
        from local_runner.access import security
        from local_runner.server import ServerSettings, serve

        files = security.SecurityFiles(options.tls_cert, options.tls_key, options.tls_client_ca, options.api_key_file)
        return serve(
            ServerSettings(
                bundle,
                options.host,
                options.grpc_port,
                options.http_port,
                options.drain_seconds,
                options.ready_file,
                security.load(files),
                options.ray or options.several,
                options.settings_file,
            )
        )
    except KeyboardInterrupt:  # before the event loop handled signals
        return 0
    except Exception as error:
        from scoring.errors import MiiAzureError

        if not isinstance(error, MiiAzureError):
            logging.getLogger(__name__).critical("The runner failed.", exc_info=True)
            return 1
        logging.getLogger(__name__).debug("why:", exc_info=True)
        terminal.say(f"error: {error}")
        ready_file.write(options.ready_file, "failed", **error.to_dict(), exit_code=error.exit_code)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    def env(name: str, default: str | None = None) -> str | None:
        return os.environ.get(f"MII_AZURE_{name}", default)

    parser = argparse.ArgumentParser(
        prog="python -m local_runner",
        description="Serve a bundle's own score.py over gRPC and HTTP.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="the folder that `mii-azure generate` wrote")
    parser.add_argument(
        "--host", type=_named, default=env("HOST", "127.0.0.1"), help="address to listen on (%(default)s)"
    )
    for name, default in (("grpc", "50051"), ("http", "5001")):
        parser.add_argument(
            f"--{name}-port",
            type=_port,
            default=env(f"{name.upper()}_PORT", default),
            help="0 picks a free one (%(default)s)",
        )
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=env("DRAIN_SECONDS", "30"),
        help="how long requests in flight may take after SIGTERM (%(default)s)",
    )
    parser.add_argument(
        "--ready-file",
        type=_file,
        default=env("READY_FILE"),
        help="where to write pid, ports and state as JSON",
    )
    for name, text in _SECURITY.items():
        parser.add_argument(f"--{name}", type=_file, default=env(name.upper().replace("-", "_")), help=text)
    parser.add_argument(
        "--log-format",
        choices=logs.FORMATS,
        default=env("LOG_FORMAT", "text"),
        help="text for people, json for machines; json tells every request (%(default)s)",
    )
    parser.add_argument(
        "--otlp-endpoint",
        default=env("OTLP_ENDPOINT", ""),
        help="address of a collector's OTLP/HTTP port, as in OTEL_EXPORTER_OTLP_ENDPOINT; traces every request",
    )
    parser.add_argument(
        "--settings-file",
        type=_file,
        default=env("SETTINGS_FILE"),
        help="JSON of log_level, drain_seconds, queue_size, request_timeout_s; read again, like keys and certificates, "
        "on SIGHUP",
    )
    local_options.add(parser)
    ray_options.add(parser)
    parser.add_argument("--verbose", action="store_true", help="log requests, and tracebacks of failures")
    return parser


def _named(text: str) -> str:
    """The text of an option, refused if blank: that would mean every address, or no guard at all."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is blank; give a value, or unset its variable in the environment")
    return text


def _file(text: str) -> Path:
    return Path(_named(text))


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is no port; ports go from 0 to 65535")
    return number


if __name__ == "__main__":
    main()
