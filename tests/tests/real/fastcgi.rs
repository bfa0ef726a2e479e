//! A FastCGI client for one request on one connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use master_process_tests::load::Outcome;
use master_process_tests::scaled;

const TIMEOUT: Duration = Duration::from_secs(15);

/// The types of records, and the role, by the specification's names.
const BEGIN_REQUEST: u8 = 1;
const END_REQUEST: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const RESPONDER: u8 = 1;

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("the test's requests are small").to_be_bytes();
    let mut bytes = vec![1, kind, 0, 1, length[0], length[1], 0, 0];
    bytes.extend_from_slice(content);
    bytes
}

fn parameter(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u32::try_from(text.len()).expect("short") | 1 << 31;
    let mut bytes = [length(name).to_be_bytes(), length(value).to_be_bytes()].concat();
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

fn by_path(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(scaled(TIMEOUT)))?;
    stream.set_write_timeout(Some(scaled(TIMEOUT)))?;
    Ok(stream)
}

fn by_port(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, scaled(TIMEOUT))?;
    stream.set_read_timeout(Some(scaled(TIMEOUT)))?;
    stream.set_write_timeout(Some(scaled(TIMEOUT)))?;
    Ok(stream)
}

fn exchange(mut stream: impl Read + Write, script: &str) -> io::Result<String> {
    let parameters = [
        parameter("SCRIPT_FILENAME", script),
        parameter("SCRIPT_NAME", "/"),
        parameter("REQUEST_METHOD", "GET"),
        parameter("SERVER_PROTOCOL", "HTTP/1.1"),
    ];
    let request = [
        record(BEGIN_REQUEST, &[0, RESPONDER, 0, 0, 0, 0, 0, 0]),
        record(PARAMS, &parameters.concat()),
        record(PARAMS, &[]),
        record(STDIN, &[]),
    ];
    stream.write_all(&request.concat())?;
    let mut output = Vec::new();
    loop {
        let mut header = [0; 8];
        stream.read_exact(&mut header)?;
        let mut content = vec![0; usize::from(u16::from_be_bytes([header[4], header[5]]))];
        stream.read_exact(&mut content)?;
        stream.read_exact(&mut vec![0; usize::from(header[6])])?;
        if header[1] == STDOUT {
            output.extend_from_slice(&content);
        }
        if header[1] == END_REQUEST {
            let text = String::from_utf8_lossy(&output).into_owned();
            let body = text.split_once("\r\n\r\n").filter(|_| content[..5] == [0; 5]);
            return body.map(|(_, body)| body.to_owned()).ok_or_else(|| io::Error::other(text.clone()));
        }
    }
}

/// Has `script` run by the server at `socket`, and gives what it printed.
pub(crate) fn get(socket: &Path, script: &str) -> Outcome {
    outcome(by_path(socket).and_then(|stream| exchange(stream, script)))
}

/// Has `script` run by the server at a TCP address, and gives what it printed.
pub(crate) fn get_by_port(address: SocketAddr, script: &str) -> Outcome {
    outcome(by_port(address).and_then(|stream| exchange(stream, script)))
}

fn outcome(result: io::Result<String>) -> Outcome {
    match result {
        Ok(body) => Outcome::Ok(body),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Outcome::Truncated,
        Err(error) => Outcome::of(&error),
    }
}
