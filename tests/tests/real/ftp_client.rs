//! A small FTP client: RFC 959 with the extended commands of RFC 2428.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use master_process_tests::load::Outcome;
use master_process_tests::scaled;

/// How long a client waits for anything: longer than a session of any of these servers may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Which side opens the data connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The server, from its data port to one of the client's.
    Active,
    /// The client, to a port that the server opens for it.
    Passive,
}

/// Where a data connection will be made.
pub(crate) enum Data {
    /// A port that the server opened.
    Passive(SocketAddr),
    /// A port of the client's.
    Active(TcpListener),
}

/// A session that has logged in.
pub(crate) struct Session {
    control: BufReader<TcpStream>,
    server: SocketAddr,
    /// What the server said at first.
    pub(crate) banner: String,
}

/// What a failed session means for the tally of a load.
pub(crate) fn outcome(error: &io::Error) -> Outcome {
    if error.kind() == io::ErrorKind::UnexpectedEof { Outcome::Truncated } else { Outcome::of(error) }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, scaled(TIMEOUT))?;
    stream.set_read_timeout(Some(scaled(TIMEOUT)))?;
    stream.set_write_timeout(Some(scaled(TIMEOUT)))?;
    Ok(stream)
}

/// A connection that comes within the time-out.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(scaled(TIMEOUT)))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < scaled(TIMEOUT) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

impl Session {
    /// Connects and logs in as `anonymous`.
    pub(crate) fn open(server: SocketAddr) -> io::Result<Session> {
        let control = BufReader::new(connect(server)?);
        let mut session = Session { control, server, banner: String::new() };
        session.banner = session.reply("220")?;
        session.command("USER anonymous", "331")?;
        session.command("PASS test@example.org", "230")?;
        session.command("TYPE I", "200")?;
        Ok(session)
    }

    /// Reads a reply, of one line or several, which must have this code. Gives the text of its last line.
    fn reply(&mut self, code: &str) -> io::Result<String> {
        loop {
            let mut line = String::new();
            if self.control.read_line(&mut line)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the session was closed"));
            }
            let line = line.trim_end();
            let is_last =
                line.as_bytes().get(3) == Some(&b' ') && line.as_bytes()[..3].iter().all(u8::is_ascii_digit);
            if is_last {
                let text =
                    line.strip_prefix(code).ok_or_else(|| io::Error::other(format!("not {code}: {line}")))?;
                return Ok(text.trim().to_owned());
            }
        }
    }

    fn send(&mut self, command: &str) -> io::Result<()> {
        self.control.get_mut().write_all(format!("{command}\r\n").as_bytes())
    }

    fn command(&mut self, command: &str, code: &str) -> io::Result<String> {
        self.send(command)?;
        self.reply(code)
    }

    /// Agrees with the server on where the next data connection is made.
    pub(crate) fn prepare(&mut self, mode: Mode) -> io::Result<Data> {
        match mode {
            Mode::Passive => {
                let text = self.command("EPSV", "229")?;
                let port = text.split('|').nth(3).and_then(|port| port.parse().ok());
                let port = port.ok_or_else(|| io::Error::other(format!("no port: {text}")))?;
                Ok(Data::Passive(SocketAddr::new(self.server.ip(), port)))
            }
            Mode::Active => {
                let own = self.control.get_ref().local_addr()?.ip();
                let listener = TcpListener::bind((own, 0))?;
                let family = if matches!(own, IpAddr::V4(_)) { 1 } else { 2 };
                let port = listener.local_addr()?.port();
                self.command(&format!("EPRT |{family}|{own}|{port}|"), "200")?;
                Ok(Data::Active(listener))
            }
        }
    }

    /// Begins a command that answers on a data connection, such as `NLST` or `RETR FILE`, and gives the connection.
    pub(crate) fn begin(&mut self, data: Data, command: &str) -> io::Result<TcpStream> {
        // In active mode the server connects before it answers.
        let stream = match &data {
            Data::Passive(address) => Some(connect(*address)?),
            Data::Active(_) => None,
        };
        let text = self.command(command, "1")?;
        // 150, or 125 from a server whose data connection is open already.
        if !matches!(text.get(..2), Some("50" | "25")) {
            return Err(io::Error::other(text));
        }
        match (stream, data) {
            (None, Data::Active(listener)) => accept(&listener),
            (stream, _) => stream.ok_or_else(|| io::ErrorKind::NotConnected.into()),
        }
    }

    /// Reads what a command answers to its end.
    pub(crate) fn finish(&mut self, mut stream: TcpStream) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        self.reply("226")?;
        Ok(bytes)
    }

    /// Sends QUIT, as a client does that is not to be counted as lost.
    pub(crate) fn quit(mut self) -> io::Result<()> {
        self.command("QUIT", "221").map(drop)
    }
}
