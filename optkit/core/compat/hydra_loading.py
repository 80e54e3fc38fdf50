"""How Hydra composes a config, layer by layer, which its plug-ins do not reach."""

from optkit.core.compat.versions import private

main = private("hydra._internal.hydra")
"""The module whose ``ConfigLoaderImpl`` composes every config (hydra-core 1.3)."""

ConfigLoaderImpl = private("hydra._internal.config_loader_impl.ConfigLoaderImpl")
"""Composes a config: ``_compose_config_from_defaults_list(defaults, repo)`` merges the layers (hydra-core 1.3)."""
