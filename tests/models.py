"""Tasks that take models of pydantic."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr


class Line(BaseModel):
    what: str
    count: int = Field(gt=0)


class Invoice(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    number: UUID
    at: datetime
    lines: list[Line] = []
    total: float = Field(0.0, alias="sum")
    _made: datetime = PrivateAttr(default_factory=datetime.now)


class Login(BaseModel):
    password: SecretStr


@dataclass
class Parcel:
    invoice: Invoice
    weight: float


def bill(invoice: Invoice, others: list[Invoice | Line] | None = None) -> object:
    return invoice, others


def send(parcel: Parcel) -> Parcel:
    return parcel


def log_in(login: Login) -> Login:
    return login


def note_invoice(ledger: str, invoice: Invoice) -> None:
    from tests.workers.tasks import note

    note(ledger, type(invoice).__name__, invoice.number.int, invoice.lines)
