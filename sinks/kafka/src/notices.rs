//! What librdkafka has said apart from reports on records.

use rdkafka::error::RDKafkaErrorCode;
use walgate_sink::{Secret, text};

/// Numbers only grow: whoever noted one sees whether something came after it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notices {
    /// How often no broker could be reached any more.
    pub(crate) down: u64,
    /// How often a broker did not let the client in, or was not trusted.
    pub(crate) refused: u64,
    /// Why, the last time.
    refusal: Option<String>,
    /// The last complaint about a connection.
    complaint: Option<String>,
    /// Why the client cannot be used any more.
    pub(crate) broken: Option<String>,
}

impl Notices {
    pub(crate) fn take_in(&mut self, code: RDKafkaErrorCode, reason: &str, secrets: &[Secret]) {
        let said = text::excerpt(reason.as_bytes(), secrets);
        match code {
            RDKafkaErrorCode::AllBrokersDown => self.down += 1,
            RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::UnsupportedSASLMechanism => self.refuse(said),
            // A handshake that breaks may be a broker that is just going; and a certificate that is refused may come as a
            // fault of the line, where the connection is looked at once more after it.
            RDKafkaErrorCode::SSL | RDKafkaErrorCode::BrokerTransportFailure if is_about_certificate(&said) => {
                self.refuse(said);
            }
            _ => self.complaint = Some(said),
        }
    }

    fn refuse(&mut self, said: String) {
        self.refused += 1;
        self.refusal = Some(said);
    }

    /// What is wrong with credentials or certificates.
    pub(crate) fn refusal(&self) -> &str {
        self.refusal.as_deref().unwrap_or("it did not say why")
    }

    /// What is known of the last fault, for an error text.
    pub(crate) fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }
}

fn is_about_certificate(said: &str) -> bool {
    said.contains("certificate") || said.contains("unknown ca") || said.contains("hostname")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_from_faults_of_the_line() {
        let secrets = [Secret::new("canary-55")];
        let mut notices = Notices::default();
        notices.take_in(RDKafkaErrorCode::BrokerTransportFailure, "a:9092: Connection refused", &secrets);
        assert_eq!((notices.refused, notices.complaint()), (0, Some("a:9092: Connection refused")));
        notices.take_in(RDKafkaErrorCode::SSL, "SSL transport error: Connection reset by peer", &secrets);
        assert_eq!(notices.refused, 0);
        notices.take_in(RDKafkaErrorCode::SSL, "SSL handshake failed: certificate verify failed", &secrets);
        let again = "a:9092: error:0A000086:SSL routines::certificate verify failed (after 1ms in state SSL_HANDSHAKE)";
        notices.take_in(RDKafkaErrorCode::BrokerTransportFailure, again, &secrets);
        notices.take_in(RDKafkaErrorCode::Authentication, "no canary-55", &secrets);
        assert_eq!((notices.refused, notices.refusal()), (3, "no [secret]"));
        notices.take_in(RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down", &secrets);
        assert_eq!(notices.down, 1);
    }
}
