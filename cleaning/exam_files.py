"""The CSV files in which C-Eval, CMMLU and MMLU publish their questions: lines of cells, and which column is which."""

import csv
import io
import unicodedata

LETTERS = "ABCD"
LONGEST_CELL = 1 << 27  # characters; the csv module's own limit is 131,072


def is_question(record):
    """Is this record, a dict, a question of an exam with its options? Training on one spoils the exam."""
    return all(option in record for option in LETTERS)


def read_cells(file):
    """[(line number, cells)] of a CSV file; ValueError names the byte that is no UTF-8, or the line that is no CSV."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 (byte {error.start}: 0x{error.object[error.start]:02x}); "
            f"convert it first, for example: iconv -f gb18030 -t utf-8 {file.name}"
        ) from error
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        return [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"{file} line {reader.line_num} is not CSV: {error}") from error


def columns_of(cells, file):
    """The first line of a file → (layout, {column: index}, whether it is a header)."""
    names = {cell.strip().lower(): i for i, cell in enumerate(cells)}
    lettered = {letter: names.get(letter.lower()) for letter in LETTERS}
    if "question" in names and None not in lettered.values():
        wanted = {"question": names["question"], **lettered, "answer": names.get("answer")}
        layout = "ceval" if "id" in names else "cmmlu"
        return layout, wanted | {"id": names.get("id", names.get(""))}, True
    if len(cells) == 6 and to_answer(cells[5]) is not None:
        return "mmlu", {"question": 0, **{c: i for i, c in enumerate(LETTERS, 1)}, "answer": 5, "id": None}, False
    raise ValueError(
        f"{file} is no exam: its first line is {cells[:7]}. C-Eval has id,question,A,B,C,D,answer; CMMLU "
        ",Question,A,B,C,D,Answer; MMLU no header but a question, four options and a letter"
    )


def to_answer(cell):
    """'B', ' b ' or 'Ｂ' → 1; None for anything else."""
    letter = unicodedata.normalize("NFKC", cell).strip().upper()
    return LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS else None
