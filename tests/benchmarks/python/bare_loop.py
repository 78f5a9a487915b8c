"""The limit of one Python thread: it reads requests, and sends the same response to each."""

import os
import selectors
import socket

BODY = b'{"message": "Welcome to the protected page"}\n'
RESPONSE = (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(BODY)) + BODY

selector = selectors.DefaultSelector()
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
selector.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            selector.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        try:
            request = key.fileobj.recv(65536)  # small requests arrive whole
            key.fileobj.send(RESPONSE if request else b"")
        except OSError:  # wrk resets its connections at the end
            request = b""
        if not request:
            selector.unregister(key.fileobj)
            key.fileobj.close()
