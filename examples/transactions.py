"""An order and its task in one transaction, and a task whose writes happen exactly once.

Run it: python examples/transactions.py. It prints:

    rolled back: 0 tasks wait
    committed: 1 task waits
    the first run breaks off in the middle
    money: alice 70, bob 30
"""

import sqlite3
from contextlib import closing

from delayed import Queue, current, delayed
from delayed.worker import PreforkedWorker

FILE = "shop.db"  # your tables and the queue's are in one database: that is what makes it one transaction
queue = Queue("orders", f"sqlite:///{FILE}")


@delayed(queue, retry=2)
def pay(buyer: str, seller: str, amount: int) -> None:
    with current.transaction() as tx:
        tx.execute("UPDATE account SET money = money - ? WHERE name = ?", (amount, buyer))
        if current.attempt == 1:
            print("the first run breaks off in the middle")
            raise ConnectionError("the bank is away")
        tx.execute("UPDATE account SET money = money + ? WHERE name = ?", (amount, seller))


def order(conn: sqlite3.Connection, amount: int) -> None:
    conn.execute("INSERT INTO purchase VALUES (?)", (amount,))
    with queue.transaction(conn):
        pay.delay("alice", "bob", amount)


if __name__ == "__main__":
    queue.broker.check()  # makes the queue's tables
    with closing(sqlite3.connect(FILE)) as conn:
        conn.execute("CREATE TABLE account (name TEXT, money INTEGER)")
        conn.execute("CREATE TABLE purchase (amount INTEGER)")
        conn.execute("INSERT INTO account VALUES ('alice', 100), ('bob', 0)")
        conn.commit()

        order(conn, 1_000_000)
        conn.rollback()  # the order is gone, and so is its task
        print(f"rolled back: {len(queue)} tasks wait")

        order(conn, 30)
        conn.commit()
        print(f"committed: {len(queue)} task waits")

        PreforkedWorker(queue, burst=True).run()
        money = conn.execute("SELECT name, money FROM account ORDER BY name").fetchall()
        print("money:", ", ".join(f"{name} {amount}" for name, amount in money))
