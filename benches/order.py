"""Reads all of the stream BENCH, and says how many messages it holds and how many stand behind a later one of their key.

    order.py PORT ROWS
"""
import json, socket, sys

port, rows = int(sys.argv[1]), int(sys.argv[2])
lines = socket.create_connection(("127.0.0.1", port), timeout=30).makefile("rwb")


def send(subject, reply, body):
    lines.write(f"PUB {subject} {reply} {len(body)}\r\n".encode() + body + b"\r\n")
    lines.flush()


def messages():
    """Subject, header block and payload of everything that comes."""
    while line := lines.readline():
        words = line.split()
        if words[0] == b"PING":
            lines.write(b"PONG\r\n")
            lines.flush()
        elif words[0] == b"MSG":
            yield words[1], b"", lines.read(int(words[-1]) + 2)[:-2]
        elif words[0] == b"HMSG":
            head, total = int(words[-2]), int(words[-1])
            whole = lines.read(total + 2)
            yield words[1], whole[:head], whole[head:-2]


lines.write(b'CONNECT {"verbose":false,"headers":true}\r\nSUB reply 1\r\nSUB batch 2\r\n')
send("$JS.API.CONSUMER.CREATE.BENCH", "reply", json.dumps({
    "stream_name": "BENCH", "config": {"ack_policy": "none", "deliver_policy": "all"},
}).encode())
came = messages()
made = json.loads(next(came)[2])
if "error" in made:
    sys.exit(f"no consumer: {made['error']}")
highest, seen, disorder, left = {}, 0, 0, 0
while seen < rows:
    if left == 0:
        left = 5000
        send(f"$JS.API.CONSUMER.MSG.NEXT.BENCH.{made['name']}", "batch", b'{"batch":5000,"expires":2000000000}')
    _, head, payload = next(came)
    if b"\r\nid:" not in head:  # a status: the batch has ended before it was full
        if b"408" in head.split(b"\r\n")[0]:
            break
        left = 0
        continue
    left -= 1
    seen += 1
    key = head.partition(b"walgate-key:")[2].split(b"\r\n")[0].strip()
    order = json.loads(payload)["order_id"]
    if order <= highest.get(key, -1):
        disorder += 1
    highest[key] = max(order, highest.get(key, -1))
print(f"verified: {seen} messages of {len(highest)} keys, {disorder} out of order")
