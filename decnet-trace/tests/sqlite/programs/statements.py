"""Executes statements in every way that `sqlite3` knows, and writes down which.

`statements.py FOLDER`, with the module that $SQLITE names if it is not sqlite3: the truth goes to
FOLDER/truth.json. Before each phase it waits for a file of that name in FOLDER.
"""

import json
import os
import sys
import threading
import time
from importlib import import_module

sqlite3 = import_module(os.environ.get("SQLITE", "sqlite3"))
folder = sys.argv[1]
file = os.path.join(folder, "a.db")
truth = []


def phase(name):
    print("ready for", name, flush=True)
    while not os.path.exists(os.path.join(folder, name)):
        time.sleep(0.01)


# sqlite3.h.
CODES = {
    None: None,
    "SQLITE_ERROR": "1",
    "SQLITE_BUSY": "5",
    "SQLITE_CONSTRAINT_PRIMARYKEY": "1555",
    "SQLITE_CONSTRAINT_UNIQUE": "2067",
}


def did(text, name, rows=None, error=None, batch=None, database=file, waited=False):
    """`name` is the statement's operation, if it is one, and its table where there is exactly one."""
    operation, _, collection = name.partition(" ")
    truth.append(
        dict(
            text=text,
            name=name or "sqlite",
            operation=operation,
            collection=collection,
            rows=rows,
            error=error,
            code=CODES[error],
            batch=batch,
            database=database,
            waited=waited,
        )
    )


def fails(db, sql, parameters=()):
    try:
        db.execute(sql, parameters)
    except sqlite3.Error:
        return
    raise AssertionError(sql)


db = sqlite3.connect(file, timeout=10)
db.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
db.executemany("INSERT INTO users VALUES (?, ?)", [(n, f"user-{n}") for n in range(100_000)])
db.commit()
memory = sqlite3.connect(":memory:")

warm = sqlite3.connect(":memory:", isolation_level=None)
warm.execute("CREATE TABLE warm_up (a)")

phase("warm-up")
for _ in range(3):
    db.execute("SELECT 1 AS warm_up").fetchall()
    warm.executemany("INSERT INTO warm_up VALUES (?)", ())
    time.sleep(0.2)

phase("statements")

# A query, by parameters and by literals; from the cache the second time.
for n in (5, 6):
    row = db.execute("SELECT name FROM users WHERE id = ?", (n,)).fetchone()
    assert row == (f"user-{n}",)
    did("SELECT name FROM users WHERE id = ?", "SELECT users", rows=1)
db.execute("SELECT name FROM users WHERE name = 'user-7' OR id IN (8, 9) -- secret").fetchall()
did("SELECT name FROM users WHERE name = ? OR id IN (?)", "SELECT users", rows=3)
db.execute("SELECT name FROM users WHERE id < 0").fetchall()
did("SELECT name FROM users WHERE id < ?", "SELECT users", rows=0)

# A transaction that sqlite3 opens by itself, executemany, and a loop of the same.
did("BEGIN", "BEGIN")
db.executemany("INSERT INTO users VALUES (?, ?)", [(n, f"u-{n}") for n in range(200_000, 200_050)])
did("INSERT INTO users VALUES (?, ?)", "INSERT users", batch=50)
for n in range(3):
    db.execute("INSERT INTO users VALUES (?, ?)", (300_000 + n, f"v-{n}"))
    did("INSERT INTO users VALUES (?, ?)", "INSERT users")
db.execute("UPDATE users SET name = 'secret' WHERE id = 300000")
did("UPDATE users SET name = ? WHERE id = ?", "UPDATE users")
db.commit()
did("COMMIT", "COMMIT")
did("BEGIN", "BEGIN")
db.execute("DELETE FROM users WHERE id >= 200000")
did("DELETE FROM users WHERE id >= ?", "DELETE users")
db.rollback()
did("ROLLBACK", "ROLLBACK")

# Errors: of a constraint, of the language, of a name, and of the number of parameters, where nothing is
# executed.
did("BEGIN", "BEGIN")
fails(db, "INSERT INTO users VALUES (1, 'secret')")
did("INSERT INTO users VALUES (?, ?)", "INSERT users", error="SQLITE_CONSTRAINT_PRIMARYKEY")
fails(db, "INSERT INTO users VALUES (?, ?)", (400_000, "user-1"))
did("INSERT INTO users VALUES (?, ?)", "INSERT users", error="SQLITE_CONSTRAINT_UNIQUE")
fails(db, "selec 'secret'")
did("selec ?", "", error="SQLITE_ERROR")
fails(db, "SELECT * FROM nowhere WHERE name = 'secret'")
did("SELECT * FROM nowhere WHERE name = ?", "SELECT nowhere", error="SQLITE_ERROR")
fails(db, "SELECT name FROM users WHERE id = ?", (1, 2))
db.rollback()
did("ROLLBACK", "ROLLBACK")

# Cursors open side by side: one is closed before its end.
first = db.execute("SELECT id AS first_one FROM users ORDER BY id")
did("SELECT id AS first_one FROM users ORDER BY id", "SELECT users", rows=None)
first.fetchone()
second = db.execute("SELECT id AS second_one FROM users LIMIT 3")
did("SELECT id AS second_one FROM users LIMIT ?", "SELECT users", rows=3)
assert len(second.fetchall()) == 3
first.close()

# In memory, and a script.
memory.executescript("CREATE TABLE t (a); INSERT INTO t VALUES ('secret'); SELECT a FROM t;")
did("CREATE TABLE t (a);", "CREATE t", database=":memory:")
did("INSERT INTO t VALUES (?);", "INSERT t", database=":memory:")
did("SELECT a FROM t;", "SELECT t", rows=1, database=":memory:")

# A schema that another connection changes, so that a cached statement is compiled anew.
other = sqlite3.connect(file, isolation_level=None)
other.execute("CREATE TABLE more (a)")
did("CREATE TABLE more (a)", "CREATE more")
db.execute("SELECT name FROM users WHERE id = ?", (5,)).fetchone()
did("SELECT name FROM users WHERE id = ?", "SELECT users", rows=1)

# A lock that another connection holds for a while.
holder = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
holder.execute("BEGIN IMMEDIATE")
did("BEGIN IMMEDIATE", "BEGIN")
release = threading.Timer(0.4, lambda: holder.execute("ROLLBACK"))
release.start()
other.execute("DELETE FROM more")
did("ROLLBACK", "ROLLBACK")
did("DELETE FROM more", "DELETE more", waited=True)
release.join()

# And one that is not given up in time.
holder.execute("BEGIN IMMEDIATE")
did("BEGIN IMMEDIATE", "BEGIN")
hasty = sqlite3.connect(file, isolation_level=None, timeout=0.2)
fails(hasty, "DELETE FROM more")
did("DELETE FROM more", "DELETE more", error="SQLITE_BUSY", waited=True)
holder.execute("ROLLBACK")
did("ROLLBACK", "ROLLBACK")

# Threads that share a connection.
shared = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
turn = threading.Lock()


def share(number):
    for n in range(20):
        # The module may be built to take but one call at a time.
        with turn:
            cursor = shared.execute(f"SELECT id AS shared_{number} FROM users LIMIT ?", (number,))
            if n % 2:
                rows = cursor.fetchall()
        if not n % 2:
            with turn:
                rows = cursor.fetchall()
        assert len(rows) == number


threads = [threading.Thread(target=share, args=(number,)) for number in range(1, 5)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for number in range(1, 5):
    for _ in range(20):
        did(f"SELECT id AS shared_{number} FROM users LIMIT ?", "SELECT users", rows=number)

# Threads with connections of their own.
def work(number):
    mine = sqlite3.connect(file)
    for _ in range(20):
        rows = mine.execute(f"SELECT id AS thread_{number} FROM users LIMIT ?", (number,)).fetchall()
        assert len(rows) == number


threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for number in range(1, 5):
    for _ in range(20):
        did(f"SELECT id AS thread_{number} FROM users LIMIT ?", "SELECT users", rows=number)

with open(os.path.join(folder, "truth.json"), "w") as out:
    json.dump(truth, out)

phase("fetch")
assert len(db.execute("SELECT id AS all_of_them FROM users WHERE id < 100000").fetchall()) == 100_000

phase("single")
for n in range(1_000):
    db.execute("SELECT name AS single FROM users WHERE id = ?", (n,)).fetchone()

phase("end")
