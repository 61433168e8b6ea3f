//! Which addresses belong to the public Internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why this is not an address of the public Internet, as a phrase; `None`: it is one.
///
/// After IANA's special-purpose address registries for IPv4 and IPv6. Addresses that carry an IPv4 address inside are
/// judged by it, since a translator on the way would take it out.
pub(crate) fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    Some(match address.octets() {
        [0, ..] => "an address of this network (0.0.0.0/8)",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "a private address",
        [100, 64..=127, ..] => "an address behind a carrier's NAT (100.64.0.0/10)",
        [127, ..] => "a loopback address",
        [169, 254, ..] => "a link-local address, such as clouds serve credentials on",
        // The platform's own service of Azure, inside of public space.
        [168, 63, 129, 16] => "an address that a cloud serves metadata on",
        [192, 0, 0, _] => "an address for protocols (192.0.0.0/24)",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "an address for documentation",
        [192, 88, 99, _] => "an address of 6to4 relays (192.88.99.0/24)",
        [198, 18..=19, ..] => "an address for benchmarks (198.18.0.0/15)",
        [224..=239, ..] => "a multicast address",
        [240..=255, ..] => "a reserved address (240.0.0.0/4)",
        _ => return None,
    })
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let inner = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        special_v4(Ipv4Addr::new(a, b, c, d))
    };
    Some(match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "the unspecified address",
        [0, 0, 0, 0, 0, 0, 0, 1] => "a loopback address",
        // IPv4-mapped: the system connects to the IPv4 address inside.
        [0, 0, 0, 0, 0, 0xffff, high, low] => return inner(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => return inner(high, low),
        [0x64, 0xff9b, 1, ..] => "an address of a local NAT64 (64:ff9b:1::/48)",
        [0x2001, 0, ..] => "a Teredo address (2001::/32)",
        [0x2001, 0x2, 0, ..] => "an address for benchmarks (2001:2::/48)",
        [0x2001, 0x10..=0x3f, ..] => "an overlay's identifier (ORCHID, DRIP)",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "an address for documentation",
        [0x2002, high, low, ..] => return inner(high, low).map(|_| "a 6to4 address with a special one inside"),
        [0xfc00..=0xfdff, ..] => "a private address (fc00::/7)",
        [0xfe80..=0xfebf, ..] => "a link-local address",
        [0xfec0..=0xfeff, ..] => "a site-local address",
        [0xff00..=0xffff, ..] => "a multicast address",
        // Global unicast is 2000::/3; nothing else has been handed out.
        [0x2000..=0x3fff, ..] => return None,
        _ => "a reserved address",
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Addresses that are not for everybody: the ends of every range, what clouds and containers use, and each way to
    /// write one address inside another.
    pub(crate) const SPECIAL: &str = "\
        0.0.0.0 0.0.0.1 0.255.255.255 10.0.0.0 10.0.0.1 10.255.255.255 100.64.0.0 100.64.0.1 100.100.100.200 \
        100.127.255.255 127.0.0.0 127.0.0.1 127.1.1.1 127.255.255.254 127.255.255.255 168.63.129.16 \
        169.254.0.0 169.254.0.1 169.254.169.253 169.254.169.254 169.254.170.2 169.254.255.255 172.16.0.0 \
        172.16.0.1 172.17.0.1 172.31.255.255 192.0.0.0 192.0.0.1 192.0.0.170 192.0.0.192 192.0.0.255 \
        192.0.2.0 192.0.2.1 192.0.2.255 192.88.99.0 192.88.99.1 192.88.99.255 192.168.0.0 192.168.0.1 \
        192.168.1.1 192.168.255.255 198.18.0.0 198.18.0.1 198.19.255.255 198.51.100.0 198.51.100.1 \
        198.51.100.255 203.0.113.0 203.0.113.1 203.0.113.255 224.0.0.0 224.0.0.1 224.0.0.251 239.255.255.250 \
        239.255.255.255 240.0.0.0 240.0.0.1 250.1.2.3 255.255.255.254 255.255.255.255 :: ::1 ::2 ::7f00:1 \
        ::10.0.0.1 ::127.0.0.1 ::192.168.0.1 ::ffff:0.0.0.0 ::ffff:10.0.0.1 ::ffff:100.64.0.1 \
        ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:169.254.169.254 ::ffff:a9fe:a9fe ::ffff:172.16.0.1 \
        ::ffff:192.168.0.1 ::ffff:198.18.0.1 ::ffff:224.0.0.1 ::ffff:255.255.255.255 ::ffff:0:127.0.0.1 \
        64:ff9b::7f00:1 64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b::192.168.1.1 \
        64:ff9b:1::1 64:ff9b:1::127.0.0.1 64:ff9b:1:ffff::8.8.8.8 64:ff9b:2::1 100:: 100::1 200::1 400::1 \
        1000::1 1fff:ffff::1 2001:: 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2:: 2001:2::1 \
        2001:10::1 2001:1f:ffff::1 2001:20::1 2001:2f::1 2001:30::1 2001:db8:: 2001:db8::1 2001:db8:ffff::1 \
        2002:0a00:0001:: 2002:7f00:0001:: 2002:7f00:1::1 2002:a9fe:a9fe:: 2002:ac10:1:: 2002:c0a8:1:: \
        2002:e000:1:: 3fff::1 3fff:fff::1 4000::1 5f00::1 6000::1 8000::1 a000::1 c000::1 e000::1 f000::1 \
        fc00:: fc00::1 fd00::1 fd00:ec2::254 fd12:3456:789a::1 fdff:ffff::1 fe00::1 fe80:: fe80::1 \
        fe80::a9fe:a9fe febf::1 fec0::1 feff::1 ff00:: ff01::1 ff02::1 ff02::fb ff05::2 ffff::1 \
        ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";

    const PUBLIC: &str = "\
        1.0.0.1 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 99.255.255.255 100.63.255.255 100.128.0.0 \
        126.255.255.255 128.0.0.0 168.63.129.15 168.63.129.17 169.253.255.255 169.255.0.0 172.15.255.255 \
        172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255 \
        192.169.0.0 198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 \
        223.255.255.255 ::ffff:1.1.1.1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2001:200::1 2001:4860:4860::8888 \
        2001:db7::1 2001:db9::1 2002:0808:0808::1 2400:cb00::1 2606:4700:4700::1111 2a00:1450:4001::1 \
        3ffe::1 3fff:1000::1";

    #[test]
    fn every_special_address_is_told_from_public_ones() {
        let vectors = SPECIAL.split_whitespace().count();
        assert!(vectors >= 120, "{vectors}");
        for text in SPECIAL.split_whitespace() {
            assert!(special(text.parse().unwrap()).is_some(), "{text} passes for a public address");
        }
        for text in PUBLIC.split_whitespace() {
            assert_eq!(special(text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn whatever_a_hosts_notation_a_url_parser_makes_the_same_address_of_it() {
        for host in ["127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.1", "①②⑦.0.0.1"]
        {
            let url = reqwest::Url::parse(&format!("http://{host}/")).unwrap();
            assert_eq!(url.host_str(), Some("127.0.0.1"), "{host}");
        }
        let url = reqwest::Url::parse("http://[::ffff:7f00:1]/").unwrap();
        assert_eq!(url.host_str(), Some("[::ffff:7f00:1]"));
        for zone in ["http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/"] {
            assert!(reqwest::Url::parse(zone).is_err(), "{zone}");
        }
    }
}
