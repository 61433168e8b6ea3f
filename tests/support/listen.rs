//! A listener that can be closed, so that connections are refused, and opened again on its port.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::wait;

type OnAccept = Arc<dyn Fn(TcpStream) + Send + Sync>;

/// See the module.
pub struct Listening {
    port: u16,
    on_accept: OnAccept,
    open: Mutex<Option<(Arc<AtomicBool>, JoinHandle<()>)>>,
}

impl Listening {
    /// Listens on a free port; every connection is given to `on_accept`, which must not block.
    pub fn start(on_accept: impl Fn(TcpStream) + Send + Sync + 'static) -> Listening {
        let listening = Listening { port: wait::free_port(), on_accept: Arc::new(on_accept), open: Mutex::new(None) };
        listening.open();
        listening
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connections are accepted from now on.
    pub fn open(&self) {
        let mut open = self.open.lock().expect("the listener");
        if open.is_some() {
            return;
        }
        let port = self.port;
        let listener = wait::eventually_some(wait::DEADLINE, "the port is free again", || {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
        });
        let closed = Arc::new(AtomicBool::new(false));
        let (flag, on_accept) = (closed.clone(), self.on_accept.clone());
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if flag.load(Ordering::SeqCst) {
                    return;
                }
                on_accept(stream);
            }
        });
        *open = Some((closed, thread));
    }

    /// Connections are refused from now on; those that exist go on.
    pub fn close(&self) {
        let Some((closed, thread)) = self.open.lock().expect("the listener").take() else { return };
        closed.store(true, Ordering::SeqCst);
        // Wakes the accept.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let _ = thread.join();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.close();
    }
}
