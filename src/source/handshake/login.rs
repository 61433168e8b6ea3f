//! Startup and authentication: trust, SCRAM-SHA-256 (bound to TLS where both sides can), md5, and a password in clear
//! text only where nobody can read it.

use std::io;

use fallible_iterator::FallibleIterator;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{self, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, Message},
        frontend,
    },
};
use walgate_sink::Secret;

use super::dialogue::{Dialogue, Incoming};
use crate::postgres::{ChannelBinding, ConnectError, ConnectSettings, ServerError};

impl Dialogue {
    pub(super) fn log_in(&mut self, settings: &ConnectSettings, password: Option<&Secret>) -> Result<(), ConnectError> {
        let mut parameters = vec![
            ("user", settings.user.as_str()),
            ("database", settings.dbname.as_str()),
            ("replication", "database"),
            ("application_name", settings.application_name.as_str()),
            ("client_encoding", "UTF8"),
        ];
        parameters.extend(settings.options.as_deref().map(|options| ("options", options)));
        self.send(|buffer| frontend::startup_message(parameters, buffer))?;
        let mut bound = false;
        loop {
            let method = match self.message()? {
                Incoming::Message(Message::AuthenticationOk) => break,
                Incoming::Message(Message::AuthenticationCleartextPassword) => {
                    if !self.reader.link().is_private() {
                        return Err(ConnectError::CleartextRefused { endpoint: self.endpoint.clone() });
                    }
                    let password = self.password(settings, password)?;
                    self.send(|buffer| frontend::password_message(password.expose().as_bytes(), buffer))?;
                    continue;
                }
                Incoming::Message(Message::AuthenticationMd5Password(body)) => {
                    let password = self.password(settings, password)?;
                    tracing::warn!(
                        role = settings.user,
                        "md5 password authentication is weak: set password_encryption=scram-sha-256 and set the password again"
                    );
                    let hash = md5_hash(settings.user.as_bytes(), password.expose().as_bytes(), body.salt());
                    self.send(|buffer| frontend::password_message(hash.as_bytes(), buffer))?;
                    continue;
                }
                Incoming::Message(Message::AuthenticationSasl(body)) => {
                    bound = self.scram(settings, self.password(settings, password)?, &body)?;
                    continue;
                }
                Incoming::Message(Message::ErrorResponse(body)) => {
                    return Err(self.refused(settings, ServerError::from_fields(body.fields())));
                }
                Incoming::Message(Message::AuthenticationGss | Message::AuthenticationSspi) => "GSSAPI",
                Incoming::Message(Message::AuthenticationKerberosV5) => "Kerberos",
                _ => return Err(self.unexpected("a message that does not belong to a login")),
            };
            return Err(ConnectError::AuthenticationMethod { endpoint: self.endpoint.clone(), method });
        }
        if settings.channel_binding == ChannelBinding::Require && !bound {
            return Err(ConnectError::ChannelBindingMissing { endpoint: self.endpoint.clone() });
        }
        loop {
            match self.message()? {
                Incoming::Message(Message::ReadyForQuery(_)) => return Ok(()),
                Incoming::Message(Message::BackendKeyData(_)) => {}
                Incoming::Message(Message::ErrorResponse(body)) => {
                    return Err(self.refused(settings, ServerError::from_fields(body.fields())));
                }
                _ => return Err(self.unexpected("a message that does not belong to a login")),
            }
        }
    }

    fn refused(&self, settings: &ConnectSettings, error: ServerError) -> ConnectError {
        ConnectError::Refused {
            endpoint: self.endpoint.clone(),
            user: settings.user.clone(),
            dbname: settings.dbname.clone(),
            error,
            tls: self.reader.link().is_tls(),
        }
    }

    fn password<'a>(
        &self,
        settings: &ConnectSettings,
        password: Option<&'a Secret>,
    ) -> Result<&'a Secret, ConnectError> {
        password.filter(|password| !password.expose().is_empty()).ok_or_else(|| ConnectError::PasswordMissing {
            endpoint: self.endpoint.clone(),
            user: settings.user.clone(),
            note: settings.password_note().map(str::to_owned),
        })
    }

    /// SCRAM-SHA-256, bound to the TLS connection where both sides can; whether it was.
    fn scram(
        &mut self,
        settings: &ConnectSettings,
        password: &Secret,
        offered: &AuthenticationSaslBody,
    ) -> Result<bool, ConnectError> {
        let (mut plain, mut plus) = (false, false);
        let mut mechanisms = offered.mechanisms();
        while let Some(mechanism) = mechanisms.next().map_err(|error| self.unexpected(&error.to_string()))? {
            plain |= mechanism == sasl::SCRAM_SHA_256;
            plus |= mechanism == sasl::SCRAM_SHA_256_PLUS;
        }
        let end_point = match settings.channel_binding {
            ChannelBinding::Disable => None,
            ChannelBinding::Prefer | ChannelBinding::Require => self.reader.link().end_point(),
        };
        let (mechanism, binding, bound) = match end_point {
            Some(hash) if plus => (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash), true),
            _ if settings.channel_binding == ChannelBinding::Require => {
                return Err(ConnectError::ChannelBindingMissing { endpoint: self.endpoint.clone() });
            }
            // "We could, and you did not offer it": the server notices if somebody took its offer away.
            Some(_) if plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested(), false),
            None if plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported(), false),
            _ => {
                let (endpoint, method) = (self.endpoint.clone(), "an unknown kind of SASL");
                return Err(ConnectError::AuthenticationMethod { endpoint, method });
            }
        };
        let failed = |endpoint: &str, error: io::Error| ConnectError::Scram {
            endpoint: endpoint.to_owned(),
            reason: error.to_string(),
        };
        let mut scram = ScramSha256::new(password.expose().as_bytes(), binding);
        self.send(|buffer| frontend::sasl_initial_response(mechanism, scram.message(), buffer))?;
        match self.message()? {
            Incoming::Message(Message::AuthenticationSaslContinue(body)) => {
                scram.update(body.data()).map_err(|error| failed(&self.endpoint, error))?;
            }
            Incoming::Message(Message::ErrorResponse(body)) => {
                return Err(self.refused(settings, ServerError::from_fields(body.fields())));
            }
            _ => return Err(self.unexpected("a message that does not belong to SCRAM")),
        }
        self.send(|buffer| frontend::sasl_response(scram.message(), buffer))?;
        match self.message()? {
            Incoming::Message(Message::AuthenticationSaslFinal(body)) => {
                scram.finish(body.data()).map_err(|error| failed(&self.endpoint, error))?;
            }
            Incoming::Message(Message::ErrorResponse(body)) => {
                return Err(self.refused(settings, ServerError::from_fields(body.fields())));
            }
            _ => return Err(self.unexpected("a message that does not belong to SCRAM")),
        }
        Ok(bound)
    }
}
