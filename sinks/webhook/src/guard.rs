//! The guard against requests to where no event should lead them: it stands in the connector, so that every connection
//! goes to an address that was looked at, also when a name's addresses change between two connections.

use std::{
    fmt,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

use ipnet::IpNet;
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

use crate::address;

/// The networks beyond the public Internet that may be connected to.
#[derive(Clone, Debug)]
pub(crate) struct Guard(Arc<[IpNet]>);

impl Guard {
    pub(crate) fn new(allowed: Vec<IpNet>) -> Self {
        Guard(allowed.into())
    }

    /// The addresses that may be connected to; why there is none.
    pub(crate) fn pass(
        &self,
        host: &str,
        found: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, RefusedAddress> {
        let mut refused = None;
        let passed = |found: &SocketAddr| {
            // A system that is given a mapped address connects to the IPv4 address inside.
            let address = found.ip().to_canonical();
            let Some(why) = address::special(found.ip()) else { return true };
            let allowed = self.0.iter().any(|network| network.contains(&address));
            if !allowed {
                refused.get_or_insert(RefusedAddress { host: host.to_owned(), address, why });
            }
            allowed
        };
        let passed: Vec<SocketAddr> = found.filter(passed).collect();
        match refused {
            Some(refused) if passed.is_empty() => Err(refused),
            _ => Ok(passed),
        }
    }
}

/// A network as the configuration writes it: `10.0.0.0/8`, or a single address.
pub(crate) fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Whether a URL's own text says that it leads inside: then it is meant.
pub(crate) fn is_literally_internal(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let local = |name: &str| name == "localhost" || name.ends_with(".localhost");
    host.parse::<IpAddr>().is_ok() || local(host.trim_end_matches('.'))
}

/// A host whose every address is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedAddress {
    host: String,
    address: IpAddr,
    why: &'static str,
}

impl fmt::Display for RefusedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RefusedAddress { host, address, why } = self;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        write!(
            f,
            "host {host} has the address {address}, {why}, and a path that a route or an event fills in goes to public \
             addresses only: if it is meant, name its network in `allow_networks`, such as {address}/{bits}"
        )
    }
}

impl std::error::Error for RefusedAddress {}

/// Looks names up. The system's own resolver, but in tests.
pub(crate) trait Lookup: Send + Sync + 'static {
    fn lookup(&self, host: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send>>;
}

/// The system's resolver.
#[derive(Debug)]
pub(crate) struct System;

impl Lookup for System {
    fn lookup(&self, host: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send>> {
        // The client sets the port.
        Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.collect()) })
    }
}

/// A resolver that gives only addresses that pass the guard.
pub(crate) struct Guarded<L> {
    pub(crate) guard: Guard,
    pub(crate) lookup: L,
}

impl<L: Lookup> Resolve for Guarded<L> {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, host) = (self.guard.clone(), name.as_str().to_owned());
        let found = self.lookup.lookup(host.clone());
        Box::pin(async move {
            let passed = guard.pass(&host, found.await?.into_iter())?;
            Ok(Box::new(passed.into_iter()) as Addrs)
        })
    }
}

/// The guard's refusal inside of another error.
pub(crate) fn refused<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a RefusedAddress> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(allowed: &[&str], found: &[&str]) -> Result<Vec<String>, RefusedAddress> {
        let guard = Guard::new(allowed.iter().map(|text| network(text).unwrap()).collect());
        let found = found.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0));
        Ok(guard.pass("partner.example", found)?.into_iter().map(|address| address.ip().to_string()).collect())
    }

    #[test]
    fn special_addresses_are_left_out_of_mixed_answers() {
        assert_eq!(pass(&[], &["1.1.1.1"]).unwrap(), ["1.1.1.1"]);
        assert_eq!(pass(&[], &["127.0.0.1", "1.1.1.1", "::1"]).unwrap(), ["1.1.1.1"]);
        assert_eq!(pass(&[], &[]).unwrap(), Vec::<String>::new());
        let refused = pass(&[], &["10.1.2.3", "::1"]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "host partner.example has the address 10.1.2.3, a private address, and a path that a route or an event fills \
             in goes to public addresses only: if it is meant, name its network in `allow_networks`, such as 10.1.2.3/32"
        );
    }

    #[test]
    fn networks_are_allowed_by_name_only() {
        assert_eq!(pass(&["10.0.0.0/8"], &["10.1.2.3"]).unwrap(), ["10.1.2.3"]);
        assert_eq!(pass(&["10.0.0.0/8"], &["::ffff:10.1.2.3"]).unwrap(), ["::ffff:10.1.2.3"]);
        assert!(pass(&["10.0.0.0/8"], &["192.168.0.1"]).is_err());
        assert!(pass(&["10.0.0.0/8"], &["169.254.169.254"]).is_err());
        assert_eq!(pass(&["192.168.0.1"], &["192.168.0.1", "192.168.0.2"]).unwrap(), ["192.168.0.1"]);
        assert!(["", "10.0.0.0/33", "10/8", "host", "10.0.0.0/8/8"].iter().all(|text| network(text).is_none()));
        assert_eq!(pass(&["fd00::/8"], &["fd00::5", "fe80::1"]).unwrap(), ["fd00::5"]);
    }

    #[test]
    fn what_is_written_as_an_address_is_meant() {
        for (url, internal) in [
            ("http://127.0.0.1:8080/", true),
            ("http://10.0.0.5/", true),
            ("http://[::1]/", true),
            ("http://2130706433/", true),
            ("http://localhost:8080/", true),
            ("http://localhost./", true),
            ("http://api.localhost/", true),
            ("http://localhost.example/", false),
            ("https://partner.example/", false),
            ("http://orders.default.svc/", false),
        ] {
            assert_eq!(is_literally_internal(&Url::parse(url).unwrap()), internal, "{url}");
        }
    }
}
