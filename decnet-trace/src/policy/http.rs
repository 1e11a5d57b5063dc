//! The attributes of HTTP spans, as OpenTelemetry's semantic conventions have them
//! (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>, stable since 1.23).

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use smol_str::{SmolStr, ToSmolStr as _, format_smolstr};

use super::{
    Link, PolicyConfig, header,
    mask::{self, CREDENTIALS},
    redact::{self, TEXT_MAX, cut},
    route::Route,
    rules::Place,
    segment::{MASK, is_secret},
    target::{Target, host_and_port},
};
use crate::{
    correlate::exchange::{End, Ends, Exchange, Role},
    span::{Attribute, Status, Value},
    text::{Addresses, Shown, Texts},
};

/// The longest `user_agent.original`, in bytes.
const USER_AGENT_MAX: usize = 256;

/// The longest `http.request.method_original`, in bytes.
const METHOD_MAX: usize = 32;

/// As many attributes as most spans have at most. Their room is what glibc's allocator keeps at hand for each
/// thread (1,032 bytes); a larger one costs several times as much.
const ATTRIBUTES: usize = 25;

const _: () = assert!(ATTRIBUTES * size_of::<Attribute>() <= 1032);

/// The little of an exchange that metrics and sampling go by: all of it of low cardinality but for the
/// server's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed<'a> {
    /// The side that the process is on.
    pub role: Role,
    /// The method, or `_OTHER`.
    pub method: &'static str,
    /// The scheme.
    pub scheme: SmolStr,
    /// The route, or the template of what was asked for.
    pub route: Option<&'a str>,
    /// The response's status.
    pub status: Option<u16>,
    /// The version of the protocol.
    pub version: SmolStr,
    /// Who was asked.
    pub server: Server<'a>,
    /// The value of `error.type`.
    pub error: Option<SmolStr>,
    /// How long it took, in nanoseconds.
    pub duration: u64,
    /// How long it waited before it was read, in nanoseconds.
    pub queued: Option<u64>,
}

/// Who was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server<'a> {
    /// By name.
    Named(&'a str, Option<u16>),
    /// By address.
    At(SocketAddr),
    /// Not known.
    Unknown,
}

/// A `User-Agent` as it may be shown.
pub(super) fn shown_agent<'a>(agent: &'a str, config: &PolicyConfig) -> Cow<'a, str> {
    match config.rules.apply(Place::UserAgent, agent) {
        Cow::Borrowed(agent) => masked_agent(agent, config),
        Cow::Owned(ruled) => Cow::Owned(masked_agent(&ruled, config).into_owned()),
    }
}

fn masked_agent<'a>(agent: &'a str, config: &PolicyConfig) -> Cow<'a, str> {
    match config.redact {
        true => mask::words(mask::whole_words(agent, USER_AGENT_MAX)),
        false => mask::credentials(cut(agent, USER_AGENT_MAX)),
    }
}

/// What an exchange says, taken apart once.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    exchange: &'a Exchange,
    config: &'a PolicyConfig,
    method: Option<&'static str>,
    target: Target<'a>,
    error: Option<SmolStr>,
}

/// What was told before, so that it need not be made again.
#[derive(Debug, Default)]
pub(super) struct Told {
    texts: Texts,
    /// Apart, because there may be many more of them.
    urls: Texts,
    addresses: Addresses,
    /// Clients' addresses as the configuration shows them.
    clients: Addresses,
    /// Clients' names for themselves, as the configuration shows them.
    agents: Shown,
    /// Kept for its room.
    room: String,
}

impl Told {
    /// The configuration has changed.
    pub(super) fn reconfigured(&mut self) {
        self.clients.clear();
        self.agents.clear();
    }

    /// A host's name as the configuration shows it, until another is asked for.
    fn host<'b>(&'b mut self, host: &'b str, config: &PolicyConfig) -> &'b str {
        match config.shown_host(host) {
            Cow::Borrowed(host) => host,
            Cow::Owned(masked) => {
                self.room = masked;
                &self.room
            }
        }
    }

    /// The name of a span.
    pub(super) fn name(&mut self, method: &str, route: &str) -> SmolStr {
        self.room.clear();
        self.room.push_str(method);
        self.room.push(' ');
        self.room.push_str(route);
        self.texts.get(&self.room)
    }
}

impl<'a> Facts<'a> {
    pub(super) fn new(exchange: &'a Exchange, config: &'a PolicyConfig) -> Self {
        Self {
            exchange,
            config,
            method: known(&exchange.method),
            target: Target::parse(&exchange.method, &exchange.target),
            error: error(exchange),
        }
    }

    /// The path as it stood: for the route only, it is not redacted.
    pub(super) fn path(&self) -> &'a str {
        self.target.path
    }

    /// The method as span names have it.
    pub(super) fn name(&self) -> &'static str {
        self.method.unwrap_or("HTTP")
    }

    /// What metrics and sampling go by.
    pub(super) fn observed<'b>(self, route: Option<&'b str>, told: &'b mut Told) -> Observed<'b>
    where
        'a: 'b,
    {
        let exchange = self.exchange;
        let scheme = self.scheme();
        let server = match (self.host(), &exchange.ends) {
            _ if exchange.unix_path.is_some() => {
                Server::Named(exchange.unix_path.as_deref().unwrap_or_default(), None)
            }
            (Some((host, None)), ends) if *ends != Ends::Unix => {
                Server::Named(told.host(host, self.config), default_port(&scheme))
            }
            (Some((host, port)), _) => Server::Named(told.host(host, self.config), port),
            (None, Ends::Ip { remote, .. }) => Server::At(*remote),
            (None, _) => Server::Unknown,
        };
        Observed {
            role: exchange.role,
            method: self.method.unwrap_or("_OTHER"),
            scheme,
            route,
            status: exchange.status,
            version: version(exchange.minor_version),
            server,
            error: self.error,
            duration: exchange.end.saturating_sub(exchange.start),
            queued: exchange.queued,
        }
    }

    pub(super) fn status(&self) -> Status {
        match self.error {
            Some(_) => Status::Error(SmolStr::default()),
            None => Status::Unset,
        }
    }

    pub(super) fn attributes(
        &self,
        route: Route<'_>,
        link: Link,
        told: &mut Told,
    ) -> Vec<Attribute> {
        let mut out = Attributes(Vec::with_capacity(ATTRIBUTES));
        let exchange = self.exchange;
        out.fixed("http.request.method", self.method.unwrap_or("_OTHER"));
        if self.method.is_none() {
            out.text("http.request.method_original", self.original_method());
        }
        match exchange.role {
            Role::Server => self.server(&mut out, route, told),
            Role::Client => self.client(&mut out, route, told),
        }
        if let Some(source) = route.source() {
            out.fixed("decnet.route.source", source);
        }
        if let Some(status) = exchange.status {
            out.int("http.response.status_code", u64::from(status));
        }
        if let Some(error) = &self.error {
            out.text("error.type", error.clone());
        }
        out.fixed("network.protocol.name", "http");
        out.text("network.protocol.version", version(exchange.minor_version));
        self.network(&mut out, told);
        if let Some(agent) = &exchange.user_agent {
            let shown = told.agents.get(agent, |agent| {
                shared(agent, &shown_agent(agent, self.config))
            });
            out.text("user_agent.original", shown);
        }
        header::attributes(&exchange.headers, self.config, &mut out.0);
        self.sizes(&mut out);
        if let Some(queued) = exchange.queued {
            out.seconds("decnet.queue.duration", queued);
        }
        if exchange.role == Role::Client {
            if let Some(connect) = exchange.connect {
                out.seconds("decnet.connect.duration", connect);
            }
            if let Some(response) = exchange.response_start {
                let first = response.saturating_sub(exchange.start);
                out.seconds("decnet.ttfb.duration", first);
            }
        }
        out.fixed("decnet.end", exchange.ended_by.as_str());
        out.fixed("decnet.link", link.as_str());
        out.0
    }

    fn server(&self, out: &mut Attributes, route: Route<'_>, told: &mut Told) {
        out.text("url.scheme", self.scheme());
        if !self.target.path.is_empty() {
            let path = self.shown_path();
            out.text("url.path", shared(&self.exchange.target, &path));
        }
        if let Some(query) = self.shown_query() {
            out.text("url.query", query);
        }
        if let Some(route) = route.name() {
            out.text("http.route", told.texts.get(route));
        }
        match (self.host(), &self.exchange.ends) {
            (Some((host, port)), _) => {
                let host = self.config.shown_host(host);
                out.text("server.address", told.texts.get(&host));
                // Without a port in it, `Host` says what a proxy in front may have been asked on; the
                // port of this very socket stands in network.local.port.
                if let Some(port) = port {
                    out.int("server.port", u64::from(port));
                }
            }
            (None, Ends::Ip { local, .. }) => {
                out.address(["server.address", "server.port"], local, told);
            }
            (None, _) => {}
        }
        if let Ends::Ip { remote, .. } = &self.exchange.ends {
            out.text("client.address", self.client_address(remote, told));
        }
    }

    fn client_address(&self, remote: &SocketAddr, told: &mut Told) -> SmolStr {
        told.clients.get(remote.ip(), |address| {
            self.config.client_address.shown(address).into()
        })
    }

    fn client(&self, out: &mut Attributes, route: Route<'_>, told: &mut Told) {
        let host = self.host();
        let scheme = self.scheme();
        match (host, &self.exchange.ends) {
            _ if self.exchange.unix_path.is_some() => {
                // What a client writes into `Host` then names nobody.
                let path = self.exchange.unix_path.clone().unwrap_or_default();
                out.text("server.address", path);
            }
            (Some((host, port)), ends) => {
                let host = self.config.shown_host(host);
                out.text("server.address", told.texts.get(&host));
                let port = match (port, ends) {
                    (Some(port), _) => Some(port),
                    (None, Ends::Unix) => None,
                    (None, _) => default_port(&scheme),
                };
                if let Some(port) = port {
                    out.int("server.port", u64::from(port));
                }
            }
            (None, Ends::Ip { remote, .. }) => {
                out.address(["server.address", "server.port"], remote, told);
            }
            (None, _) => {}
        }
        // CONNECT has no URL: its target is a host.
        if self.method != Some("CONNECT") {
            told.room.clear();
            self.write_full(&scheme, host, &mut told.room);
            out.text("url.full", told.urls.get(&told.room));
        }
        out.text("url.scheme", scheme);
        if let Some(template) = route.name() {
            out.text("url.template", told.texts.get(template));
        }
    }

    fn network(&self, out: &mut Attributes, told: &mut Told) {
        match &self.exchange.ends {
            Ends::Ip { local, remote } => {
                out.fixed("network.transport", "tcp");
                out.fixed(
                    "network.type",
                    match remote.ip().to_canonical().is_ipv4() {
                        true => "ipv4",
                        false => "ipv6",
                    },
                );
                match self.exchange.role {
                    // The client's address again.
                    Role::Server => {
                        out.text("network.peer.address", self.client_address(remote, told));
                        out.int("network.peer.port", u64::from(remote.port()));
                    }
                    Role::Client => {
                        let names = ["network.peer.address", "network.peer.port"];
                        out.address(names, remote, told);
                    }
                }
                let names = ["network.local.address", "network.local.port"];
                out.address(names, local, told);
            }
            Ends::Unix => out.fixed("network.transport", "unix"),
            Ends::Unknown => {}
        }
    }

    fn sizes(&self, out: &mut Attributes) {
        let exchange = self.exchange;
        out.int("http.request.size", exchange.request_bytes);
        if exchange.request_body > 0 {
            out.int("http.request.body.size", exchange.request_body);
        }
        if exchange.status.is_some() {
            out.int("http.response.size", exchange.response_bytes);
            out.int("http.response.body.size", exchange.response_body);
        }
    }

    /// The host that was asked for: that of an absolute target comes before `Host` (RFC 9112 §3.2.2).
    fn host(&self) -> Option<(&'a str, Option<u16>)> {
        self.target
            .authority
            .or(self.exchange.host.as_deref())
            .map(str::trim)
            .and_then(host_and_port)
    }

    /// A method that the conventions do not know.
    fn original_method(&self) -> &'a str {
        match self.config.redact && is_secret(&self.exchange.method) {
            true => MASK,
            false => cut(&self.exchange.method, METHOD_MAX),
        }
    }

    /// The scheme of an absolute target; else `http`, which is what is read in clear.
    fn scheme(&self) -> SmolStr {
        match self.target.scheme {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => SmolStr::new_static("https"),
            Some(scheme)
                if !scheme.eq_ignore_ascii_case("http")
                    && scheme.len() <= 16
                    && !is_secret(scheme) =>
            {
                scheme.to_ascii_lowercase().into()
            }
            _ => SmolStr::new_static("http"),
        }
    }

    /// A path as routes are folded from it.
    pub(super) fn foldable<'p>(&self, path: &'p str) -> Cow<'p, str> {
        match self.config.rules.apply(Place::Path, path) {
            Cow::Borrowed(path) => redact::path_credentials(path),
            Cow::Owned(ruled) => Cow::Owned(redact::path_credentials(&ruled).into_owned()),
        }
    }

    fn shown_path(&self) -> Cow<'a, str> {
        let path = match self.config.rules.apply(Place::Path, self.target.path) {
            Cow::Borrowed(path) => path,
            Cow::Owned(ruled) => {
                return Cow::Owned(match self.config.redact {
                    true => redact::path(&ruled).into_owned(),
                    false => redact::path_credentials(cut(&ruled, TEXT_MAX)).into_owned(),
                });
            }
        };
        match self.config.redact {
            true => redact::path(path),
            false => redact::path_credentials(cut(path, TEXT_MAX)),
        }
    }

    fn shown_query(&self) -> Option<Cow<'a, str>> {
        let query = self.target.query.filter(|query| !query.is_empty())?;
        let allowed = &self.config.query_allow;
        let query = match self.config.rules.apply(Place::Query, query) {
            Cow::Borrowed(query) => query,
            Cow::Owned(ruled) => {
                return Some(Cow::Owned(match self.config.redact {
                    true => redact::query(&ruled, allowed).into_owned(),
                    false => redact::query_credentials(cut(&ruled, TEXT_MAX)).into_owned(),
                }));
            }
        };
        Some(match self.config.redact {
            true => redact::query(query, allowed),
            false => redact::query_credentials(cut(query, TEXT_MAX)),
        })
    }

    /// The URL of a request that the process made. Credentials are masked, whatever the configuration.
    fn write_full(&self, scheme: &str, host: Option<(&str, Option<u16>)>, url: &mut String) {
        use std::fmt::Write as _;

        let path = self.shown_path();
        url.push_str(scheme);
        url.push_str("://");
        if self.target.credentials.is_some() {
            url.push_str(CREDENTIALS);
            url.push('@');
        }
        match (host, &self.exchange.ends) {
            (Some((host, port)), _) => {
                match host.contains(':') {
                    true => {
                        let _ = write!(url, "[{host}]");
                    }
                    false => url.push_str(&self.config.shown_host(host)),
                }
                if let Some(port) = port {
                    push_port(url, port);
                }
            }
            (None, Ends::Ip { remote, .. }) => {
                let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
                let _ = write!(url, "{remote}");
            }
            (None, _) => {}
        }
        if path != "*" {
            url.push_str(&path);
        }
        if let Some(query) = self.shown_query() {
            url.push('?');
            url.push_str(&query);
        }
    }
}

/// A method as the conventions have it: one that is known, or `_OTHER`.
pub fn method(method: &str) -> &'static str {
    known(method).unwrap_or("_OTHER")
}

/// The methods of RFC 9110, and PATCH and QUERY: what the conventions call known.
fn known(method: &str) -> Option<&'static str> {
    Some(match method {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        "CONNECT" => "CONNECT",
        "TRACE" => "TRACE",
        "QUERY" => "QUERY",
        _ => return None,
    })
}

/// The value of `error.type`, where the exchange failed: a status that is an error for this side, or an
/// end that broke it off. What the agent itself gave up is no failure of the service.
fn error(exchange: &Exchange) -> Option<SmolStr> {
    let from = match exchange.role {
        Role::Server => 500,
        Role::Client => 400,
    };
    if let Some(status) = exchange.status.filter(|status| *status >= from) {
        return Some(status.to_smolstr());
    }
    match exchange.ended_by {
        End::PeerGone | End::Aborted | End::ProcessExit => {
            Some(SmolStr::new_static(exchange.ended_by.as_str()))
        }
        _ => None,
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

fn version(minor: u8) -> SmolStr {
    match minor {
        0 => SmolStr::new_static("1.0"),
        1 => SmolStr::new_static("1.1"),
        other => format_smolstr!("1.{other}"),
    }
}

/// Writes `:8000`; the machinery of formatting takes longer than all else in a URL.
fn push_port(url: &mut String, port: u16) {
    url.push(':');
    for power in [10_000, 1000, 100, 10, 1] {
        if port >= power || power == 1 {
            url.push(char::from(b'0' + (port / power % 10) as u8));
        }
    }
}

/// What is shown of a text that is held already: shared, where that is all of it.
fn shared(whole: &SmolStr, shown: &str) -> SmolStr {
    match *whole == *shown {
        true => whole.clone(),
        false => SmolStr::new(shown),
    }
}

struct Attributes(Vec<Attribute>);

impl Attributes {
    fn text(&mut self, name: &'static str, value: impl Into<SmolStr>) {
        self.0.push((name, Value::Str(value.into())));
    }

    /// One of the program's own texts.
    fn fixed(&mut self, name: &'static str, value: &'static str) {
        self.text(name, SmolStr::new_static(value));
    }

    fn int(&mut self, name: &'static str, value: u64) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.0.push((name, Value::Int(value)));
    }

    fn seconds(&mut self, name: &'static str, nanoseconds: u64) {
        self.0.push((name, Value::Float(nanoseconds as f64 / 1e9)));
    }

    fn address(&mut self, [address, port]: [&'static str; 2], at: &SocketAddr, told: &mut Told) {
        let make = |address: IpAddr| address.to_smolstr();
        self.text(address, told.addresses.get(at.ip().to_canonical(), make));
        self.int(port, u64::from(at.port()));
    }
}
