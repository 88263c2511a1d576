"""The configuration groups. Importing this package registers what their files refer to.

``/lq_plugin/NAME@_here_`` in a file's defaults stands for all options that the signature of its ``_target_`` has, with
their types and defaults, so that a wrong key or type is refused when a configuration is composed.
"""

from lq_plugin.apps import resolvers, schema

resolvers.register()
schema.register()
