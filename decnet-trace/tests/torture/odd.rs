//! What servers may do, and hardly any does: the server in `raw.py`.

use crate::{
    Server,
    client::{Book, Client, head, pause},
};

/// A connection whose request the agent does not see.
pub(crate) fn held_before_the_agent<'a>(book: &'a Book, server: &Server) -> Client<'a> {
    let mut client = Client::connect(book, "asked before the agent", server);
    client.request("GET", "/hold");
    pause();
    client
}

/// Its answer belongs to nothing; what comes then is seen again.
pub(crate) fn release(book: &Book, server: &Server, mut held: Client<'_>) {
    Client::connect(book, "release", server).get("/release");
    held.ignored_response();
    held.get("/plain");
}

/// All cases.
pub(crate) fn all(book: &Book, server: &Server, fallback: bool) {
    writes(book, server);
    reads(book, server);
    ends(book, server);
    together(book, server);
    if !fallback {
        // The system calls' own hooks do not see sendfile.
        let mut client = Client::connect(book, "sendfile", server);
        for size in ["/sendfile/10", "/sendfile/3000000", "/plain"] {
            client.get(size);
        }
    }
}

/// Responses written in all ways.
fn writes(book: &Book, server: &Server) {
    for path in [
        "/plain",
        "/two",
        "/split",
        "/bytes",
        "/sendmsg",
        "/writev",
        "/write",
        "/hints",
        "/empty",
        "/lookalike",
        "/chunks",
        "/false-end",
    ] {
        let mut client = Client::connect(book, path, server);
        // Twice: what is left behind of the one shows in the other.
        client.get(path);
        client.get(path);
        client.get("/plain");
    }
    let mut client = Client::connect(book, "trailers", server);
    client.request("GET", "/chunks/trailer");
    // They are out of sight, behind chunks that are.
    client.response_known_by("next_request");
    client.get("/plain");
    let mut client = Client::connect(book, "HEAD", server);
    client.request("HEAD", "/head");
    client.response();
    client.get("/plain");
}

/// Requests read in all ways.
fn reads(book: &Book, server: &Server) {
    for mode in ["read", "recv_into", "readv", "recvmsg", "peek", "small"] {
        let mut client = Client::connect(book, mode, server);
        client.get(&format!("/mode/{mode}"));
        client.get("/plain");
        client.begin("POST", "/plain");
        client.send(&head("POST", "/plain", &["Content-Length: 3000"]));
        client.send(&[b'P'; 3000]);
        client.response();
        client.pipeline(&[("GET", "/plain"), ("GET", "/two"), ("GET", "/plain")]);
        for _ in 0..3 {
            client.response();
        }
    }
    let mut client = Client::connect(book, "moved to another descriptor", server);
    client.get("/fd");
    client.get("/plain");
}

/// All ways to end.
fn ends(book: &Book, server: &Server) {
    for path in ["/close/3", "/close/0", "/half-close"] {
        let mut client = Client::connect(book, path, server);
        assert_eq!(client.get(path).end, "close");
    }
    let mut client = Client::connect(book, "half closed by the client", server);
    client.request("GET", "/two");
    client.shut();
    client.response();
    let mut client = Client::connect(book, "half closed by the client", server);
    client.request("GET", "/close/3");
    client.shut();
    assert_eq!(client.response().end, "close");

    let mut client = Client::connect(book, "aborted", server);
    client.request("GET", "/abort");
    assert_eq!(client.part(100), 200);
    assert!(client.is_closed());
    client.fails("aborted", Some(200));
    let mut client = Client::connect(book, "reset by the server", server);
    client.request("GET", "/reset");
    assert!(client.is_closed());
    client.fails("aborted", None);

    // Answered before the head was whole.
    let mut client = Client::connect(book, "impatient", server);
    client.get("/mode/impatient");
    client.begin("GET", "/late");
    client.send(b"GET /late HTTP/1.1\r\nHost: tor");
    assert_eq!(client.response().status, 408);
}

/// Several requests in one read, several responses in one write.
fn together(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "batch", server);
    for _ in 0..2 {
        let paths = ["/batch", "/plain", "/empty", "/plain", "/batch-end"];
        client.pipeline(&paths.map(|path| ("GET", path)));
        for _ in paths {
            client.response();
        }
    }
}
