"""The configuration groups. Importing this package registers what their files refer to."""

from lq_plugin.apps import resolvers, schema

resolvers.register()
schema.register()
