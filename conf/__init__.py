"""The configuration groups. Importing this package registers the schemas that the files build on."""

from lq_plugin.apps.schema import register

register()
