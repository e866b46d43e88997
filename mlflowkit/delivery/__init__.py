"""From a recipe to what other systems run: pipelines, images, manifests, and the commands that they call.

`delivery_settings` is the recipe's section, `delivery_plan` the neutral plan, and a module of `targets` renders it for
one system. No vendor is imported.
"""
