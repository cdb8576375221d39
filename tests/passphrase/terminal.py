"""Runs a program at a terminal of its own, types an answer at each question, and tells what the terminal showed."""
import json, os, pty, sys

answers = sys.argv[1].split("\n")
command = sys.argv[3:]
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(command[0], command)
shown = b""
asked = 0
while True:
    try:
        piece = os.read(terminal, 4096)
    except OSError:
        break
    if not piece:
        break
    shown += piece
    # A question ends with a colon and a space, and waits.
    while answers and shown.count(b": ", asked) and shown.endswith(b": "):
        asked = len(shown)
        os.write(terminal, answers.pop(0).encode() + b"\n")
_, status = os.waitpid(pid, 0)
print(json.dumps({"shown": shown.decode(errors="replace"), "code": os.waitstatus_to_exitcode(status)}))
