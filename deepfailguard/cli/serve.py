"""`deepfailguard serve`: a saved guard as a server."""

import argparse
import logging
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from deepfailguard.device import resolve_device
from deepfailguard.errors import ConfigurationError, DeepfailguardError
from deepfailguard.runtime.long_lived import freeze_objects
from deepfailguard.runtime.runners.ray_replica import ReplicaSettings
from deepfailguard.runtime.settings import Settings
from deepfailguard.serving.guard_process import GuardProcess
from deepfailguard.serving.guard_worker import LOG_FORMAT, GuardOrder
from deepfailguard.serving.settings import Listening, ServerSettings
from deepfailguard.versions.pool import TRUSTED_PACKAGES

__all__ = ["add_serve"]

logger = logging.getLogger(__name__)

_DONE, _FAILED, _ASKED_WRONG, _INTERRUPTED = 0, 1, 2, 130
_FOR_VERSIONS: Final = 0.4  # then a request that waits behind a version which hangs is answered in time all the same
_TURN: Final = 0.001  # seconds that the event loop may keep the thread waiting which hands batches over
_KEYS: Final = {"key": "DEEPFAILGUARD_KEY", "admin_key": "DEEPFAILGUARD_ADMIN_KEY"}


def add_serve(commands: Any) -> None:
    """Add the command to a parser; it sets `run`, a function from the parsed arguments to an exit status.

    Args:
        commands: what `argparse.ArgumentParser.add_subparsers` returned.
    """
    parser = commands.add_parser(
        "serve",
        help="serve a saved guard by HTTP and gRPC",
        description="Serve a saved guard by HTTP and gRPC (Open Inference Protocol v2), with a dashboard at /.",
        epilog="Keys come from the environment (DEEPFAILGUARD_KEY, DEEPFAILGUARD_ADMIN_KEY) or from files, never from "
        "the command line, where everybody on the machine could read them.",
        allow_abbrev=False,  # --key SECRET must not be taken for --key-file
    )
    parser.add_argument("guard", type=Path, metavar="GUARD_DIR", help="folder of the guard")
    _add_where(parser.add_argument_group("where"))
    _add_how(parser.add_argument_group("how"))
    _add_ray(parser.add_argument_group("with --engine ray"))
    _add_limits(parser.add_argument_group("limits"))
    _add_trust(parser.add_argument_group("keys and trust"))
    parser.set_defaults(run=_serve_or_say_why)


def _add_where(group: Any) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (%(default)s)")
    group.add_argument("--port", type=int, default=8000, help="of HTTP; 0 for any that is free (%(default)s)")
    group.add_argument("--grpc-port", type=int, default=8001, help="of gRPC; -1 for no gRPC (%(default)s)")
    group.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM file of the certificate chain")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM file of its private key")
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="this machine, or Ray Serve")


def _add_ray(group: Any) -> None:
    usual = ReplicaSettings()
    group.add_argument("--ray-address", metavar="ADDRESS", help="of a running Ray cluster; one is started without it")
    group.add_argument("--replicas", type=int, help=f"of each version ({usual.replicas})")
    group.add_argument("--most-replicas", type=int, help="of each version under load; never more than usual without it")
    group.add_argument("--replicas-per-node", type=int, help="of a version on one machine at most")
    group.add_argument("--replica-cpus", type=float, help=f"that Ray keeps for each ({usual.cpus:g})")
    group.add_argument("--replica-gpus", type=float, help=f"the same; also a part of one ({usual.gpus:g})")


def _add_how(group: Any) -> None:
    group.add_argument(
        "--isolation",
        choices=("in process", "processes"),
        type=lambda text: text.replace("-", " "),
        default="in process",
        help="versions share the guard's process (fast), or have one each (a crash costs only one) (%(default)s)",
    )
    group.add_argument("--device", default="cpu", help="where versions run: cpu, cuda, auto (%(default)s)")
    group.add_argument(
        "--state", type=Path, metavar="DIR", help="folder of the event log and of what survives a restart"
    )
    group.add_argument("--least-versions", type=int, default=1, help="with fewer the guard abstains (%(default)s)")
    group.add_argument("--standby", nargs="+", default=[], metavar="NAME", help="versions that run as shadows at first")
    group.add_argument("--name", default="guard", help="of the model in the protocol (%(default)s)")


def _add_limits(group: Any) -> None:
    group.add_argument("--deadline", type=float, default=1.0, help="seconds from request to answer (%(default)s)")
    group.add_argument(
        "--version-deadline",
        type=float,
        help=f"seconds that versions have for a batch; later ones are left out ({_FOR_VERSIONS:g} of --deadline)",
    )
    group.add_argument("--max-batch", type=int, default=64, help="images that are judged together (%(default)s)")
    group.add_argument("--max-wait-ms", type=float, default=2.0, help="that a first image waits for more (%(default)s)")
    group.add_argument("--queue", type=int, default=1024, help="images that may wait; more get 503 (%(default)s)")
    group.add_argument("--per-client", type=int, default=256, help="requests at a time; more get 429 (%(default)s)")
    group.add_argument("--largest-body-mib", type=int, default=32, help="of a request (%(default)s)")
    group.add_argument("--drain-seconds", type=float, default=30.0, help="to answer what was accepted (%(default)s)")


def _add_trust(group: Any) -> None:
    group.add_argument("--key-file", type=Path, metavar="FILE", help="holds the key that clients must send")
    group.add_argument("--admin-key-file", type=Path, metavar="FILE", help="holds the key for changing versions")
    group.add_argument("--public-key", type=Path, metavar="FILE", help="of who must have signed the guard")
    group.add_argument(
        "--trusted",
        action="append",
        default=[],
        metavar="PACKAGE",
        help=f"also rebuild architectures of this package; {', '.join(TRUSTED_PACKAGES)} are trusted anyway",
    )


def _serve_or_say_why(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    try:
        return _serve(arguments)
    except (ConfigurationError, FileNotFoundError) as error:
        return _say(error, _ASKED_WRONG)
    except (DeepfailguardError, OSError) as error:
        return _say(error, _FAILED)
    except KeyboardInterrupt:  # while the guard was loaded; later the server stops in good order
        return _INTERRUPTED


def _say(error: Exception, status: int) -> int:
    print(f"deepfailguard serve: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def _serve(arguments: argparse.Namespace) -> int:
    """What cannot work is found out before anything is loaded."""
    if not arguments.guard.is_dir():
        raise FileNotFoundError(f"there is no folder {arguments.guard}; give that of a saved guard")
    _find_packages_here()
    try:
        from deepfailguard.serving.server import GuardServer, open_port
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"serving needs {error.name}, which is not installed: pip install 'deepfailguard[serve]'"
        ) from error
    listening, server, settings = _listening(arguments), _server_settings(arguments), _runtime_settings(arguments)
    replicas = _replicas(arguments)
    if arguments.engine == "ray":
        return _serve_on_ray(arguments, listening, server, settings, replicas)
    device = resolve_device(arguments.device)
    with closing(open_port(listening.host, listening.port)) as http_socket:
        if listening.grpc_port:
            open_port(listening.host, listening.grpc_port).close()
        logger.info("loading the guard in %s; its versions run %s", arguments.guard, arguments.isolation)
        with GuardProcess(_order(arguments, settings, device)) as guard:
            freeze_objects()
            sys.setswitchinterval(_TURN)
            return _DONE if GuardServer(guard, server, listening, http_socket).run() else _FAILED


def _listening(arguments: argparse.Namespace) -> Listening:
    return Listening(
        host=arguments.host,
        port=arguments.port,
        grpc_port=None if arguments.grpc_port == -1 else arguments.grpc_port,
        certificate=arguments.tls_certificate,
        private_key=arguments.tls_key,
    )


def _find_packages_here() -> None:
    """Users' own packages (`mymodel`, say) lie in the folder where the command is run."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _runtime_settings(arguments: argparse.Namespace) -> Settings:
    given = arguments.version_deadline
    deadline = _FOR_VERSIONS * arguments.deadline if given is None else given
    return Settings(deadline=deadline, least_versions=arguments.least_versions, standby=tuple(arguments.standby))


def _server_settings(arguments: argparse.Namespace) -> ServerSettings:
    body = arguments.largest_body_mib << 20
    return ServerSettings(
        model_name=arguments.name,
        max_batch=arguments.max_batch,
        max_wait=arguments.max_wait_ms / 1000,
        queue=arguments.queue,
        per_client=arguments.per_client,
        deadline=arguments.deadline,
        largest_body=body,
        bodies=max(8 * body, 256 << 20),
        drain_seconds=arguments.drain_seconds,
        key=_key("key", arguments.key_file),
        admin_key=_key("admin_key", arguments.admin_key_file),
    )


def _key(name: str, file: Path | None) -> str | None:
    """A key from its file, or else from the environment."""
    if file is None:
        return os.environ.get(_KEYS[name]) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the key in {file} cannot be read: {error}") from error
    if not key:
        raise ConfigurationError(f"expected a key in {file}, but it is empty; make one with: openssl rand -hex 24")
    return key


def _trusted(arguments: argparse.Namespace) -> tuple[str, ...]:
    return (*TRUSTED_PACKAGES, *arguments.trusted)


def _order(arguments: argparse.Namespace, settings: Settings, device: Any) -> GuardOrder:
    return GuardOrder(
        folder=arguments.guard,
        device=str(device),
        trusted=_trusted(arguments),
        public_key=arguments.public_key,
        isolation=arguments.isolation,
        settings=settings,
        state=arguments.state,
    )


def _replicas(arguments: argparse.Namespace) -> ReplicaSettings:
    names = ("replicas", "most_replicas", "replicas_per_node", "replica_cpus", "replica_gpus")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if given and arguments.engine != "ray":
        raise ConfigurationError(f"--{next(iter(given)).replace('_', '-')} works with --engine ray alone")
    return ReplicaSettings(**{name.removeprefix("replica_"): value for name, value in given.items()})


def _serve_on_ray(
    arguments: argparse.Namespace,
    listening: Listening,
    server: ServerSettings,
    runtime: Settings,
    replicas: ReplicaSettings,
) -> int:
    if arguments.standby:
        raise ConfigurationError("--standby works with --engine local; on Ray, swap or retire versions while it serves")
    from deepfailguard.serving.ray_app import RayGuard, serve_on_ray

    guard = RayGuard(
        folder=arguments.guard.resolve(),
        trusted=_trusted(arguments),
        public_key=arguments.public_key,
        device=arguments.device,
        state=arguments.state,
        runtime=runtime,
        server=server,
        replicas=replicas,
    )
    serve_on_ray(guard, listening, arguments.ray_address)
    return _DONE
