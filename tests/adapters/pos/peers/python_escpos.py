"""Receipts by python-escpos. Run by its own Python: `tcp HOST PORT`, `file PATH`, or `dummy`, which prints
them as JSON, name to base64."""

import base64
import json
import sys
from typing import Any

from escpos.printer import Dummy, File, Network  # type: ignore[import-not-found]
from PIL import Image  # type: ignore[import-not-found, unused-ignore]


def sale(printer: Any) -> None:
    printer.set(align="center", bold=True, double_height=True, double_width=True)
    printer.textln("Bäckerei Müller")
    printer.set_with_default()
    printer.textln("REGISTER: 2   CASHIER: 07")
    printer.textln("TRANS#: 815")
    printer.textln("Crème brûlée            4.50")
    printer.textln("VOID Crème brûlée      -4.50")
    printer.textln("TOTAL                   0.00")
    printer.textln("AMEX 378282246310005")
    for impl in ("bitImageRaster", "graphics", "bitImageColumn"):
        printer.image(Image.new("1", (24, 24)), impl=impl)
    printer.barcode("4006381333931", "EAN13", 64, 2, "", "")
    printer.barcode("{BTOTAL", "CODE128", function_type="B")
    printer.qr("TOTAL 99.99", native=True)
    printer.ln(2)
    printer.cashdraw(2)
    printer.cut()


def refund(printer: Any) -> None:
    printer.hw("INIT")
    printer.line_spacing(60)
    printer.text("REFUND\nTOTAL -3.00\n")
    printer.buzzer(2, 2)
    printer.cut("PART")


def pages(printer: Any) -> None:
    printer.textln("Łódź Чек ελλάδα 5 €")
    printer.cut()


PROFILE = "TM-T88V"
match sys.argv[1:]:
    case ["tcp", host, port]:
        sale(Network(host, port=int(port), profile=PROFILE))
    case ["file", path]:
        sale(File(path, profile=PROFILE))
    case _:
        made = {}
        for receipt in (sale, refund, pages):
            dummy = Dummy(profile=PROFILE)
            receipt(dummy)
            made[receipt.__name__] = base64.b64encode(dummy.output).decode()
        print(json.dumps(made))
