"""The commands that move orders for as long as they run: into the database, to a topic, and from it."""

from collections.abc import Callable
from typing import Any

import click

from flashsale.cli.options import database_option, log_options, on_reject_option, store_options
from flashsale.config import Config
from flashsale.kafka.brokers import Topic

_TOPIC, _GROUP = "orders", "flashsale"
_BROKERS = "HOST:PORT[,HOST:PORT…]"


def _topic_option(**more: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--topic", "topic_name", help=f"Its name on the brokers.  [default: {_TOPIC}]", **more)


@click.command(short_help="Publish the ledgers to a topic of Kafka.")
@click.option("--kafka", "brokers", required=True, metavar=_BROKERS, help="The brokers that have the topic.")
@_topic_option(default=_TOPIC)
@store_options
@log_options
def relay(config: Config, *, brokers: str, topic_name: str) -> None:
    """Publish the ledgers of all products to a topic of Kafka until SIGTERM or Ctrl-C; as many as you like."""
    from flashsale import workers

    workers.relay_orders(config, Topic(brokers, topic_name), click.echo)


@click.command(short_help="Move orders into the database.")
@click.option("--from-kafka", "brokers", metavar=_BROKERS, help="Read them from a topic, where `relay` has put them.")
@_topic_option()
@click.option("--group", help=f"Whose members share the topic.  [default: {_GROUP}]")
@on_reject_option
@database_option
@store_options
@log_options
def worker(config: Config, *, brokers: str | None, topic_name: str | None, group: str | None) -> None:
    """Move orders into the database until SIGTERM or Ctrl-C; servers do it too, unless started with --no-orders."""
    if brokers is None and (topic_name is not None or group is not None):
        raise click.UsageError("--topic and --group are for --from-kafka")
    if group == "":
        raise click.UsageError("--group is empty: give it a name, or leave it out")
    from flashsale import workers

    if brokers is None:
        workers.move_orders(config, click.echo)
        return
    topic = Topic(brokers, _TOPIC if topic_name is None else topic_name)
    workers.move_published_orders(config, topic, group or _GROUP, click.echo)
