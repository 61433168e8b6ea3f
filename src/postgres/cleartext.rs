//! Keeps `tokio_postgres` from sending a password in clear text where it could be read on the way: it would answer
//! such a request without asking. The stream is watched until the login is over, and cut off before the answer.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

/// What was seen on the way: it decides which error to report.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The server asked for a password in clear text.
    pub cleartext: Arc<AtomicBool>,
    /// The server agreed to TLS.
    pub tls: Arc<AtomicBool>,
}

/// A stream under watch.
pub(super) struct Watched<S> {
    inner: S,
    watch: Watch,
    seen: Seen,
}

impl<S> Watched<S> {
    /// `asks_for_tls`: the first byte that comes is the answer to SSLRequest.
    pub(super) fn new(inner: S, asks_for_tls: bool, seen: Seen) -> Self {
        let watch = if asks_for_tls { Watch::TlsAnswer } else { Watch::Login(Login::default()) };
        Watched { inner, watch, seen }
    }

    /// A stream that may carry a password in clear text.
    pub(super) fn off(inner: S, seen: Seen) -> Self {
        Watched { inner, watch: Watch::Off, seen }
    }
}

enum Watch {
    TlsAnswer,
    Login(Login),
    Off,
}

/// The messages of a login, one after another, across reads of any size.
#[derive(Default)]
struct Login {
    head: [u8; 9],
    have: usize,
    skip: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Continue,
    Over,
    Cleartext,
}

impl Login {
    fn feed(&mut self, mut bytes: &[u8]) -> Verdict {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.skip > 0 {
                let step = self.skip.min(bytes.len());
                self.skip -= step;
                bytes = &bytes[step..];
                continue;
            }
            bytes = rest;
            self.head[self.have] = byte;
            self.have += 1;
            let number = |at: usize| {
                u32::from_be_bytes([self.head[at], self.head[at + 1], self.head[at + 2], self.head[at + 3]]) as usize
            };
            let authentication = self.head[0] == b'R';
            if self.have == 5 && !authentication {
                self.skip = number(1).saturating_sub(4);
                self.have = 0;
            } else if self.have == 9 {
                match number(5) {
                    0 => return Verdict::Over,
                    3 => return Verdict::Cleartext,
                    _ => {}
                }
                self.skip = number(1).saturating_sub(8);
                self.have = 0;
            }
        }
        Verdict::Continue
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        if matches!(result, Poll::Ready(Ok(()))) && !matches!(self.watch, Watch::Off) {
            let mut new = buf.filled().get(before..).unwrap_or_default();
            if let (Watch::TlsAnswer, Some((answer, rest))) = (&self.watch, new.split_first()) {
                if *answer == b'S' {
                    self.seen.tls.store(true, Ordering::Relaxed);
                    self.watch = Watch::Off;
                } else {
                    self.watch = Watch::Login(Login::default());
                    new = rest;
                }
            }
            if let Watch::Login(login) = &mut self.watch {
                match login.feed(new) {
                    Verdict::Continue => {}
                    Verdict::Over => self.watch = Watch::Off,
                    Verdict::Cleartext => {
                        self.seen.cleartext.store(true, Ordering::Relaxed);
                        return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()));
                    }
                }
            }
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Watched<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(bytes: &[u8], step: usize) -> Verdict {
        let mut login = Login::default();
        for piece in bytes.chunks(step) {
            match login.feed(piece) {
                Verdict::Continue => {}
                verdict => return verdict,
            }
        }
        Verdict::Continue
    }

    #[test]
    fn a_request_for_clear_text_is_seen_wherever_it_stands() {
        let notice = b"N\0\0\0\x08R\0\0\0";
        let sasl = b"R\0\0\0\x17\0\0\0\x0ASCRAM-SHA-256\0\0";
        let cleartext = b"R\0\0\0\x08\0\0\0\x03";
        let ok = b"R\0\0\0\x08\0\0\0\0";
        for step in 1..40 {
            assert_eq!(verdict(cleartext, step), Verdict::Cleartext);
            assert_eq!(verdict(&[notice.as_slice(), cleartext].concat(), step), Verdict::Cleartext);
            let mut padded = sasl.to_vec();
            padded.resize(24, 0);
            assert_eq!(verdict(&[padded.as_slice(), cleartext].concat(), step), Verdict::Cleartext);
            assert_eq!(verdict(&[padded.as_slice(), ok, cleartext].concat(), step), Verdict::Over);
            assert_eq!(verdict(notice, step), Verdict::Continue);
        }
    }
}
