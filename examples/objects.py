"""Objects as arguments of a queue that carries only JSON: the annotations say what to make of it.

Run it: python examples/objects.py. It prints:

    refused: SignatureMismatch
    to Ada: 2 tea, 1 cake
"""

from dataclasses import dataclass, field
from decimal import Decimal

from delayed import Queue, SignatureMismatch, delayed
from delayed.worker import PreforkedWorker

queue = Queue("orders", serializer="json")


@dataclass
class Item:
    name: str
    price: Decimal
    count: int = 1


@dataclass
class Order:
    customer: str
    items: list[Item] = field(default_factory=list)


@delayed(queue)
def ship(order: Order) -> None:
    print(f"to {order.customer}:", ", ".join(f"{item.count} {item.name}" for item in order.items))


if __name__ == "__main__":
    ship.delay(Order("Ada", [Item("tea", Decimal("3.10"), 2), Item("cake", Decimal("4"))]))
    try:
        ship.delay(Order("Bob", [Item("tea", "dear")]))  # type: ignore[arg-type]
    except SignatureMismatch as error:
        print("refused:", type(error).__name__)
    PreforkedWorker(queue, burst=True).run()
