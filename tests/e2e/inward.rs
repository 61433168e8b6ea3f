//! Where a webhook whose path comes from events may not lead (X3, X4), from walgate's own look-up of a name to the
//! connection: in a network in which every address has a listener, and names are answered by the test.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::rig::Rig;
use crate::support::dns::Dns;
use crate::support::everywhere::Everywhere;
use crate::support::namespace::{self, NAMESERVER};
use crate::support::wait::{DEADLINE, eventually, watch_for};
use crate::support::walgate::{Setup, Walgate};

/// The inside of `delivery: { }`.
const IMPATIENT: &str = "timeout: 2s, retry: { initial: 20ms, max: 200ms, connection_max: 200ms }";

/// IANA's special-purpose registry for IPv4, and class E.
const NETWORKS: [(&str, u32); 14] = [
    ("0.0.0.0", 8),
    ("10.0.0.0", 8),
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.0.2.0", 24),
    ("192.88.99.0", 24),
    ("192.168.0.0", 16),
    ("198.18.0.0", 15),
    ("198.51.100.0", 24),
    ("203.0.113.0", 24),
    ("240.0.0.0", 4),
];

/// That for IPv6, what clouds serve credentials on, what is not handed out; and what nobody can listen on.
const OTHERS: &str = "\
    0.0.0.0 100.100.100.200 168.63.129.16 169.254.169.253 169.254.169.254 169.254.170.2 192.0.0.192 \
    :: ::1 ::2 64:ff9b:1::1 64:ff9b:1:ffff::7f00:1 100::1 100:0:0:1::1 200::1 400::1 1000::1 2001::1 \
    2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:1f::1 2001:20::1 2001:3f::1 2001:db8::1 \
    2001:db8:ffff::1 3fff::1 3fff:fff::1 4000::1 5f00::1 6000::1 8000::1 a000::1 c000::1 e000::1 f000::1 f800::1 \
    fc00::1 fd00::1 fd00:ec2::254 fd20:ce::254 fdff:ffff::1 fe00::1 fec0::1 feff::1 \
    224.0.0.1 239.255.255.250 255.255.255.255 ff02::1 ff05::2 fe80::1 fe80::a9fe:a9fe";

/// Each way to write an address of each network.
fn vectors() -> Vec<IpAddr> {
    let mut vectors: Vec<IpAddr> = OTHERS.split_whitespace().map(|text| text.parse().expect("an address")).collect();
    for (network, bits) in NETWORKS {
        let first = u32::from(network.parse::<Ipv4Addr>().expect("a network"));
        let size = 1 << (32 - bits);
        let inside = [first + 1, first + size / 2, first + (size - 2)].map(Ipv4Addr::from);
        vectors.extend(inside.map(IpAddr::from));
        let [a, b, c, d] = inside[0].octets().map(u16::from);
        let (high, low) = (a << 8 | b, c << 8 | d);
        vectors.extend(
            [
                inside[0].to_ipv6_mapped(),
                inside[0].to_ipv6_compatible(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            ]
            .map(IpAddr::from),
        );
    }
    vectors
}

/// A sink for each vector, whose host is a name that has that address; `more` are further keys of `webhook:`.
fn sinks(rig: &Rig, count: usize, port: u16, more: &str) -> Setup {
    let (mut setup, mut names) = (rig.source(), String::new());
    for n in 0..count {
        setup = setup.sink(&format!(
            "v{n}: {{ webhook: {{ url: \"http://v{n}.test:{port}/hooks\", unsigned: true{more} }}, \
             delivery: {{ {IMPATIENT} }} }}"
        ));
        let _ = write!(names, "{}v{n}", if n == 0 { "" } else { ", " });
    }
    setup.route("**", &format!("[{names}]"))
}

/// The last errors of the sinks.
fn errors(walgate: &Walgate) -> Vec<String> {
    let status = walgate.status().unwrap_or_default();
    let message = |sink: &serde_json::Value| Some(sink["last_error"]["message"].as_str()?.to_owned());
    status["sinks"].as_array().into_iter().flatten().filter_map(message).collect()
}

#[test]
fn x3_no_address_that_is_not_public_is_connected_to_for_an_event() {
    namespace::of_its_own("inward::x3_no_address_that_is_not_public_is_connected_to_for_an_event", || {
        let (rig, dns, canary) = (Rig::new(), Dns::start(NAMESERVER), Everywhere::start());
        let (vectors, port) = (vectors(), canary.port());
        for (n, address) in vectors.iter().enumerate() {
            dns.set(&format!("v{n}.test"), &[&[*address]]);
        }
        // Where a listener can be reached at all. The others (multicast, broadcast, link-local ones without a zone) are
        // refused as well, but no canary could tell.
        let reached: BTreeSet<IpAddr> = vectors
            .iter()
            .filter(|address| namespace::is_reached(SocketAddr::new(**address, port)))
            .map(IpAddr::to_canonical)
            .collect();
        assert!(reached.len() >= 120 && vectors.len() >= 150, "{} of {}", reached.len(), vectors.len());
        canary.forget();

        // The control: URLs that are the same for every event are meant, and lead to each of them.
        let event = rig.insert("k");
        let mut walgate = Walgate::run(&sinks(&rig, vectors.len(), port, ""));
        walgate.eventually("a fixed URL leads everywhere", || {
            let seen = canary.addresses();
            // 0.0.0.0 and :: mean the machine itself.
            reached.iter().all(|address| address.is_unspecified() || seen.contains(address))
        });
        walgate.kill9();
        rig.database.confirmed_when_released();
        canary.forget();

        let mut walgate = Walgate::run(&sinks(&rig, vectors.len(), port, ", path: \"/{key}\""));
        eventually(DEADLINE, "every sink has refused", || {
            let errors = errors(&walgate);
            errors.len() == vectors.len() && errors.iter().all(|error| error.contains(".test has the address "))
        });
        // Probes of sinks that are down come in here.
        watch_for(Duration::from_secs(2));
        assert_eq!(canary.addresses(), BTreeSet::new(), "an event, or a probe on its behalf, has led there");
        rig.assert_not_passed(&event);
        walgate.kill9();
    });
}

#[test]
fn x4_names_that_turn_inward_are_looked_up_again_and_not_followed() {
    namespace::of_its_own("inward::x4_names_that_turn_inward_are_looked_up_again_and_not_followed", || {
        let (rig, dns, canary) = (Rig::new(), Dns::start(NAMESERVER), Everywhere::start());
        let [public, public6, private, private6, metadata, loopback] =
            ["93.184.216.34", "2606:2800:220:1::25", "10.0.0.5", "fd00::5", "169.254.169.254", "127.0.0.1"]
                .map(|text| text.parse::<IpAddr>().expect("an address"));
        let port = canary.port();
        // One has its path from the configuration of the sink, the other from the route.
        let sink = |name: &str, more: &str| {
            format!(
                "{name}: {{ webhook: {{ url: \"http://{name}.test:{port}/hooks\", unsigned: true{more} }}, \
                 delivery: {{ {IMPATIENT} }} }}"
            )
        };
        let setup = rig.source().sink(&sink("partner", ", path: \"/{key}\"")).sink(&sink("routed", ""));
        let answer = |answers: &[&[IpAddr]]| {
            for name in ["partner.test", "routed.test"] {
                dns.set(name, answers);
            }
        };
        // The second look-up says something else than the first.
        answer(&[&[public], &[private]]);
        let mut walgate = Walgate::run(&setup.route("**", "[partner, { sink: routed, path: \"/{key}\" }]"));
        let first = rig.insert("k");
        rig.wait_confirmed(&mut walgate, &first);
        assert_eq!(canary.requests(&first), [public, public]);
        for inward in [private, loopback, metadata, private6] {
            answer(&[&[inward]]);
            let held = rig.insert("k");
            eventually(DEADLINE, "the new address is refused", || {
                let refused = format!("has the address {inward}, ");
                errors(&walgate).iter().filter(|error| error.contains(&refused)).count() == 2
            });
            watch_for(Duration::from_millis(500));
            assert!(canary.requests(&held).is_empty(), "{inward}");
            // It turns back, and what was held goes out; what is mixed in is left out, wherever it stands.
            answer(&[&[inward, public, metadata, private6], &[private6, loopback, public6, inward]]);
            rig.wait_confirmed(&mut walgate, &held);
            let sent_to = canary.requests(&held);
            assert!(sent_to.len() == 2 && sent_to.iter().all(|to| [public, public6].contains(to)), "{sent_to:?}");
        }
        let seen = canary.addresses();
        assert!(seen.iter().all(|address| [public, public6].contains(address)), "{seen:?}");
        walgate.kill9();
    });
}
