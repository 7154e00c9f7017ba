//! Which service a request is for (interface.md §4): a route, else the host's name, or one header field alone.
//!
//! Must never look at anything that authorization does not look at too, and must never change what is forwarded.

use std::borrow::Cow;

use culvert_model::name::ServiceName;

/// How a listener learns the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Select {
    /// By route, then by host.
    #[default]
    Host,
    /// By the field `Culvert-Service` and nothing else.
    Header,
}

/// One `[[route]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// The host it is for, in lower case and without a port; none = every host.
    pub(crate) host: Option<String>,
    /// The path prefix, by whole segments; `/` = every path.
    pub(crate) path: String,
    /// The service it leads to.
    pub(crate) service: ServiceName,
}

/// What of a request decides about its service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    /// The authority of an absolute-form target, else the Host field; with or without a port.
    pub(crate) host: Option<&'a str>,
    /// The target's path, as sent.
    pub(crate) path: &'a str,
    /// The value of `Culvert-Service`, when there is exactly one.
    pub(crate) header: Option<&'a str>,
}

/// The routes and the domain, settled.
#[derive(Debug, Clone, Default)]
pub(crate) struct Router {
    /// Hosts before "every host", longer prefixes before shorter ones: the first that matches is the one.
    routes: Vec<Route>,
    /// With its leading dot, in lower case; empty = none.
    suffix: String,
}

impl Router {
    /// Orders the routes. `domain` is what may follow a service's name in a host.
    pub(crate) fn new(mut routes: Vec<Route>, domain: &str) -> Self {
        for route in &mut routes {
            route.host = route.host.take().map(|host| host.to_ascii_lowercase());
            while route.path.len() > 1 && route.path.ends_with('/') {
                route.path.pop();
            }
        }
        routes.sort_by_key(|route| (route.host.is_none(), std::cmp::Reverse(route.path.len())));
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        Self { routes, suffix: if domain.is_empty() { String::new() } else { format!(".{domain}") } }
    }

    /// The name that the request asks for, in lower case; none when nothing in it can be a service's name.
    pub(crate) fn service<'a>(&'a self, select: Select, ask: Ask<'a>) -> Option<Cow<'a, str>> {
        match select {
            Select::Header => ask.header.and_then(|name| label(name.trim())),
            Select::Host => {
                let host = without_port(ask.host?);
                match self.routes.iter().find(|route| route.matches(host, ask.path)) {
                    Some(route) => Some(Cow::Borrowed(route.service.as_str())),
                    None => label(self.without_domain(host)),
                }
            }
        }
    }

    fn without_domain<'a>(&self, host: &'a str) -> &'a str {
        let Some(cut) = host.len().checked_sub(self.suffix.len()).filter(|cut| *cut > 0) else { return host };
        match (host.get(..cut), host.get(cut..)) {
            (Some(name), Some(suffix)) if suffix.eq_ignore_ascii_case(&self.suffix) => name,
            (_, _) => host,
        }
    }
}

impl Route {
    fn matches(&self, host: &str, path: &str) -> bool {
        self.host.as_deref().is_none_or(|own| own.eq_ignore_ascii_case(host)) && under(path, &self.path)
    }
}

/// Whether `path` lies under `prefix` by whole segments.
fn under(path: &str, prefix: &str) -> bool {
    if prefix == "/" || prefix.is_empty() {
        return true;
    }
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A host without its port and without the root's dot.
fn without_port(host: &str) -> &str {
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        Some(_) | None => host,
    };
    host.strip_suffix('.').unwrap_or(host)
}

/// The text in lower case, when it is a service's name.
fn label(text: &str) -> Option<Cow<'_, str>> {
    let bytes = text.as_bytes();
    let fits = (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
        && !text.eq_ignore_ascii_case("localhost");
    if !fits {
        return None;
    }
    if bytes.iter().any(u8::is_ascii_uppercase) {
        return Some(Cow::Owned(text.to_ascii_lowercase()));
    }
    Some(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: Option<&str>, path: &str, service: &str) -> Route {
        Route { host: host.map(str::to_owned), path: path.to_owned(), service: service.parse().unwrap() }
    }

    fn by_host(router: &Router, host: &str, path: &str) -> Option<String> {
        let ask = Ask { host: Some(host), path, header: Some("from-header") };
        router.service(Select::Host, ask).map(Cow::into_owned)
    }

    #[test]
    fn a_host_is_a_name_or_a_name_under_the_domain_and_its_port_is_ignored() {
        let router = Router::new(Vec::new(), "internal");
        for (host, expected) in [
            ("orders", Some("orders")),
            ("orders:8080", Some("orders")),
            ("orders.internal", Some("orders")),
            ("Orders.INTERNAL:80", Some("orders")),
            ("orders.internal.", Some("orders")),
            ("orders.internal:", Some("orders")),
            ("orders.example.com", None),
            ("a.orders.internal", None),
            (".internal", None),
            ("internal", Some("internal")),
            ("localhost", None),
            ("localhost:8080", None),
            ("127.0.0.1:8080", None),
            ("[::1]:8080", None),
            ("-a", None),
            ("a_b", None),
            ("", None),
            (":80", None),
            ("ordersXinternal", Some("ordersxinternal")),
        ] {
            assert_eq!(by_host(&router, host, "/").as_deref(), expected, "{host}");
        }
    }

    #[test]
    fn without_a_domain_only_bare_names_are_services() {
        let router = Router::new(Vec::new(), "");
        assert_eq!(by_host(&router, "orders", "/").as_deref(), Some("orders"));
        assert_eq!(by_host(&router, "orders.internal", "/"), None);
    }

    #[test]
    fn the_longest_route_by_whole_segments_goes_before_the_host() {
        let router = Router::new(
            vec![
                route(Some("api.example.com"), "/", "web"),
                route(Some("api.example.com"), "/orders", "orders"),
                route(Some("API.example.com"), "/orders/old/", "legacy"),
                route(None, "/everywhere", "shared"),
            ],
            "internal",
        );
        for (host, path, expected) in [
            ("api.example.com", "/", Some("web")),
            ("api.example.com:443", "/orders", Some("orders")),
            ("api.example.com", "/orders/7", Some("orders")),
            ("api.example.com", "/orders7", Some("web")),
            ("api.example.com", "/orders/old", Some("legacy")),
            ("api.example.com", "/orders/old/1", Some("legacy")),
            ("api.example.com", "/orders/older", Some("orders")),
            ("api.example.com", "//orders", Some("web")),
            ("api.example.com", "/%6frders", Some("web")),
            ("api.example.com", "/everywhere", Some("web")),
            ("other.example.com", "/everywhere/x", Some("shared")),
            ("other.example.com", "/orders", None),
            ("billing.internal", "/orders", Some("billing")),
            ("billing.internal", "/everywhere", Some("shared")),
        ] {
            assert_eq!(by_host(&router, host, path).as_deref(), expected, "{host}{path}");
        }
    }

    #[test]
    fn a_listener_that_selects_by_header_looks_at_nothing_else() {
        let router = Router::new(vec![route(None, "/", "routed")], "internal");
        let ask = |header| Ask { host: Some("orders"), path: "/", header };
        assert_eq!(router.service(Select::Header, ask(Some("Billing"))).as_deref(), Some("billing"));
        assert_eq!(router.service(Select::Header, ask(Some("billing.internal"))), None);
        assert_eq!(router.service(Select::Header, ask(None)), None);
    }
}
