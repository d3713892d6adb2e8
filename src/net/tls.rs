//! One TLS stack (rustls on AWS-LC) for both sides, Kubernetes and etcd. It accepts what Go's crypto/tls
//! accepts, as far as that is safe: `docs/security.md` lists the differences.

use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, InvalidMessage,
    RootCertStore, SignatureScheme,
};

use super::pem::{self, Identity};

/// TLS settings for one server: trust and client certificate.
#[derive(Default)]
pub struct Tls {
    /// PEM CA certificates to trust; without them, the system's.
    pub ca: Option<Vec<u8>>,
    /// The client certificate.
    pub identity: Option<Identity>,
    /// Accept any server certificate.
    pub insecure: bool,
    /// Where CA and client certificate are configured.
    pub set_by: SetBy,
}

/// Where CA and client certificate are configured: error messages name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SetBy {
    /// `--cacert`, `--cert` and `--key`.
    #[default]
    Options,
    /// The kubeconfig.
    Kubeconfig,
    /// The pod's service account.
    ServiceAccount,
    /// The system. Certificates in `ca` are trusted beside the system's.
    System,
}

impl SetBy {
    fn ca(self) -> &'static str {
        match self {
            Self::Options => "give its CA with `--cacert`",
            Self::Kubeconfig => "give its CA as `certificate-authority` in the kubeconfig",
            Self::ServiceAccount => "the service account's `ca.crt` is not of this API server",
            Self::System => "add its CA to the system's, or name a file with `SSL_CERT_FILE`",
        }
    }

    fn identity(self) -> &'static str {
        match self {
            Self::Options => "give one with `--cert` and `--key`",
            Self::Kubeconfig => {
                "give one as `client-certificate` and `client-key` in the kubeconfig"
            }
            Self::ServiceAccount | Self::System => "none can be given here",
        }
    }
}

/// The client side of connections to one server.
#[derive(Debug, Clone)]
pub struct Client {
    /// rustls's configuration.
    pub(crate) config: Arc<ClientConfig>,
    offered: Arc<ClientIdentity>,
    set_by: SetBy,
}

impl Tls {
    /// Builds the client side of a connection, speaking one of the ALPN `protocols`.
    ///
    /// # Errors
    /// A certificate or key that cannot be read, or no CA to trust.
    pub fn client(&self, protocols: &[&str]) -> anyhow::Result<Client> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous();
        let builder = if self.insecure {
            let algorithms = provider.signature_verification_algorithms;
            builder.with_custom_certificate_verifier(Arc::new(AcceptAnyVerifier(algorithms)))
        } else {
            builder.with_custom_certificate_verifier(Arc::new(self.verifier(&provider)?))
        };
        let identity = match &self.identity {
            Some(identity) => Some(Arc::new(pem::certified(identity, &provider)?)),
            None => None,
        };
        let offered = Arc::new(ClientIdentity {
            identity,
            requested: AtomicBool::new(false),
        });
        let mut config = builder.with_client_cert_resolver(Arc::<ClientIdentity>::clone(&offered));
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Ok(Client {
            config: Arc::new(config),
            offered,
            set_by: self.set_by,
        })
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> anyhow::Result<TrustVerifier> {
        let mut roots = RootCertStore::empty();
        let mut pinned = Vec::new();
        if let Some(ca) = &self.ca {
            pinned = match pem::certificates(ca) {
                Ok(found) => found,
                Err(error) => bail!("failed to read the CA certificates: {error:#}"),
            };
            roots.add_parsable_certificates(pinned.iter().cloned());
        }
        if self.ca.is_none() || self.set_by == SetBy::System {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        if roots.is_empty() {
            bail!(
                "no CA certificate is given, and the system has none: {}",
                self.set_by.ca()
            );
        }
        let webpki =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        Ok(TrustVerifier {
            webpki: webpki.build()?,
            pinned,
        })
    }
}

/// The client certificate, and whether the server has requested one.
#[derive(Debug)]
struct ClientIdentity {
    identity: Option<Arc<CertifiedKey>>,
    requested: AtomicBool,
}

impl ResolvesClientCert for ClientIdentity {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.requested.store(true, Ordering::Relaxed);
        self.identity.clone()
    }

    fn has_certs(&self) -> bool {
        // `resolve` must be called even without a certificate: it notes the request.
        true
    }
}

/// Accepts a certificate that a trusted CA signed, or that is itself among the trusted ones.
#[derive(Debug)]
struct TrustVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for TrustVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // webpki checks the validity period before the signature: only the issuer is in question.
            Err(Error::InvalidCertificate(problem))
                if is_issuer_problem(&problem) && self.pinned.contains(end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Whether a certificate was rejected only because of its issuer.
fn is_issuer_problem(problem: &CertificateError) -> bool {
    match problem {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => true,
        // A self-signed certificate with `CA:TRUE`.
        CertificateError::Other(other) => other.to_string().contains("CaUsedAsEndEntity"),
        _ => false,
    }
}

/// Accepts any certificate. Still checks the handshake's signatures.
#[derive(Debug)]
struct AcceptAnyVerifier(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAnyVerifier {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

impl Client {
    /// Describes an error of a TLS connection, and how to fix it.
    pub(crate) fn explain(&self, error: &io::Error) -> String {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match inner {
            Some(Error::InvalidCertificate(problem)) => self.certificate_problem(problem),
            Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
                "it does not speak TLS: use `http://`".to_owned()
            }
            Some(Error::AlertReceived(alert)) => self.alert(*alert),
            Some(Error::PeerIncompatible(_)) => {
                "no TLS version or algorithm in common: TLS 1.2 and 1.3 are supported".to_owned()
            }
            Some(error) => format!("TLS failed: {error}"),
            None if was_closed(error) => self.closed(),
            None => format!("the connection failed: {error}"),
        }
    }

    fn certificate_problem(&self, problem: &CertificateError) -> String {
        match problem {
            // A CA of the same name with another key fails as a bad signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "its certificate is signed by a CA that is not trusted: {}",
                self.set_by.ca()
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("its certificate is for another name: {problem}")
            }
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                "its certificate is signed in a way that is not accepted: RSA of 2048 to 8192 bits, ECDSA \
                 on P-256, P-384 or P-521, and Ed25519 are, with SHA-256, SHA-384 or SHA-512"
                    .to_owned()
            }
            CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                format!(
                    "its certificate is a CA's own (`CA:TRUE`), and not one of those that are trusted: {}",
                    self.set_by.ca()
                )
            }
            _ => format!("its certificate is not valid: {problem}"),
        }
    }

    /// Describes an alert. Its meaning depends on whether the server has requested a client certificate.
    fn alert(&self, alert: AlertDescription) -> String {
        let requested = self.offered.requested.load(Ordering::Relaxed);
        let name = AlertName(alert);
        match (requested, &self.offered.identity) {
            (true, None) => format!(
                "it wants a client certificate ({name}): {}",
                self.set_by.identity()
            ),
            (true, Some(_)) => format!(
                "it refused our client certificate ({name}): it may be signed by a CA that the server does \
                 not trust, have expired, or not be for clients"
            ),
            (false, _) => match alert {
                AlertDescription::HandshakeFailure
                | AlertDescription::InsufficientSecurity
                | AlertDescription::ProtocolVersion
                | AlertDescription::IllegalParameter => format!(
                    "no TLS version or algorithm in common ({name}): its key or its settings may be too old"
                ),
                AlertDescription::UnrecognisedName => {
                    format!("it does not know the name it was asked for ({name})")
                }
                _ => format!("it ended the TLS connection ({name})"),
            },
        }
    }

    /// Describes a connection that the server closed during the handshake or right after it.
    fn closed(&self) -> String {
        let requested = self.offered.requested.load(Ordering::Relaxed);
        match (requested, &self.offered.identity) {
            (true, None) => format!(
                "it closed the connection after it had asked for a client certificate: {}",
                self.set_by.identity()
            ),
            (true, Some(_)) => "it closed the connection after it had seen our client certificate: it may be \
                                signed by a CA that the server does not trust, have expired, or not be for \
                                clients"
                .to_owned(),
            (false, _) => "it closed the connection during the TLS handshake: it may be restarting, or not \
                           speak TLS (then use `http://`)"
                .to_owned(),
        }
    }
}

/// Whether the peer closed or reset the connection.
pub(crate) fn was_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
    )
}

/// Displays an alert as RFC 8446 spells it: `certificate_required`.
struct AlertName(AlertDescription);

impl fmt::Display for AlertName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{:?}", self.0);
        let mut last_was_lower = false;
        f.write_str("TLS alert `")?;
        for c in name.chars() {
            if c.is_ascii_uppercase() && last_was_lower {
                f.write_str("_")?;
            }
            last_was_lower = c.is_ascii_lowercase();
            write!(f, "{}", c.to_ascii_lowercase())?;
        }
        f.write_str("`")
    }
}
