"""Stands in front of a server on 127.0.0.1: as its TLS side, or as a proxy on the way to it.

front.py PORTFILE LOG tls CERT KEY CLIENT_CA|- TARGET_PORT
front.py PORTFILE LOG http|socks5 - - - -
front.py PORTFILE LOG https CERT KEY - -

A proxy connects to 127.0.0.1 whatever host it is asked for, and notes in LOG what it was asked.
"""
import socket
import ssl
import struct
import sys
import threading

portfile, log, kind, cert, key, client_ca, target = sys.argv[1:8]
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(50)
with open(portfile, "w") as file:
    file.write(str(listener.getsockname()[1]))


def note(text):
    with open(log, "a") as file:
        file.write(text + "\n")


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def exactly(client, length):
    data = b""
    while len(data) < length:
        more = client.recv(length - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data


def socks5(client):
    methods = exactly(client, exactly(client, 2)[1])
    user = ""
    if 2 in methods:
        client.sendall(b"\5\2")
        exactly(client, 1)
        name = exactly(client, exactly(client, 1)[0]).decode()
        user = f" {name}:{exactly(client, exactly(client, 1)[0]).decode()}"
        client.sendall(b"\1\0")
    else:
        client.sendall(b"\5\0")
    kind = exactly(client, 4)[3]
    if kind == 3:
        host = exactly(client, exactly(client, 1)[0]).decode()
    else:
        host = socket.inet_ntop(*((socket.AF_INET, exactly(client, 4)) if kind == 1 else (socket.AF_INET6, exactly(client, 16))))
    port = struct.unpack(">H", exactly(client, 2))[0]
    note(f"{host}:{port}{user}")
    server = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"\5\0\0\1" + bytes(6))
    return server, b""


def http(client):
    head = b""
    while b"\r\n\r\n" not in head:
        head += exactly(client, 1)
    lines = head.decode().split("\r\n")
    user = [line for line in lines if line.startswith("Proxy-Authorization: ")]
    note(" ".join([lines[0]] + user))
    method, url, _ = lines[0].split()
    if method == "CONNECT":
        server = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        return server, b""
    authority, path = url.split("://", 1)[1].split("/", 1)
    server = socket.create_connection(("127.0.0.1", int(authority.rsplit(":", 1)[1])))
    return server, head.replace(url.encode(), b"/" + path.encode(), 1)


def serve(client):
    try:
        if cert != "-":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.load_cert_chain(cert, key)
            if client_ca != "-":
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(client_ca)
            client = context.wrap_socket(client, server_side=True)
        if kind == "tls":
            server, first = socket.create_connection(("127.0.0.1", int(target))), b""
        else:
            server, first = socks5(client) if kind == "socks5" else http(client)
        server.sendall(first)
        threading.Thread(target=pump, args=(client, server), daemon=True).start()
        pump(server, client)
    except OSError as error:
        note(f"failed: {error}")
        client.close()


while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
