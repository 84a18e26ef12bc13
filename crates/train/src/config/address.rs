//! An address to listen at.

/// The host and the port of an address; this machine's own where only a port is named.
pub(crate) fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':').unwrap_or(("", address));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    let port = port.parse().ok().filter(|_| host.chars().all(plain))?;
    Some((if host.is_empty() { "127.0.0.1" } else { host }, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_this_machines() {
        assert_eq!(host_and_port("9100"), Some(("127.0.0.1", 9100)));
        assert_eq!(host_and_port(":9100"), Some(("127.0.0.1", 9100)));
        assert_eq!(host_and_port("0.0.0.0:9100"), Some(("0.0.0.0", 9100)));
        assert_eq!(host_and_port("[::1]:9100"), Some(("::1", 9100)));
        assert_eq!(host_and_port("localhost:9100"), Some(("localhost", 9100)));
        for nonsense in ["localhost", "a b:1", "h:70000", "h:", ":", "http://h:9100/metrics"] {
            assert_eq!(host_and_port(nonsense), None, "{nonsense}");
        }
    }
}
