//! A small blocking HTTP client: one new connection per request, every wait bounded.
//!
//! It exists so that failures and times are exact: no retries, no reuse, no redirects.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// What the responder says about a request.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Answer {
    /// `web.1`.
    pub task: String,
    /// The node that runs the task.
    pub node: String,
    /// Address and port of the client as the task saw them.
    pub client: SocketAddr,
}

/// Asks `GET path` on a new connection, in the calling thread's namespace.
///
/// # Errors
/// No connection or no full answer within `timeout`, or a status other than 200.
pub fn get(addr: SocketAddr, path: &str, timeout: Duration) -> Result<String> {
    let started = Instant::now();
    let mut stream = TcpStream::connect_timeout(&addr, timeout).context("no connection")?;
    stream.set_nodelay(true)?;
    get_on(&mut stream, path, timeout.saturating_sub(started.elapsed()), false)
}

/// Asks on a connection that is there already and stays open if `keep` says so.
///
/// # Errors
/// No full answer within `timeout`, or a status other than 200.
pub fn get_on(stream: &mut TcpStream, path: &str, timeout: Duration, keep: bool) -> Result<String> {
    let connection = if keep { "keep-alive" } else { "close" };
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: {connection}\r\n\r\n");
    stream.set_write_timeout(Some(at_least_a_moment(timeout)))?;
    stream.write_all(request.as_bytes()).context("cannot send")?;
    read_response(stream, Instant::now() + timeout)
}

/// Asks the responder who answers.
///
/// # Errors
/// As [`get`]; or the answer is not the responder's.
pub fn ask(addr: SocketAddr, timeout: Duration) -> Result<Answer> {
    parse_answer(&get(addr, "/", timeout)?)
}

/// Reads the responder's JSON.
///
/// # Errors
/// It is something else.
pub fn parse_answer(body: &str) -> Result<Answer> {
    serde_json::from_str(body).with_context(|| format!("not the responder's answer: {body:?}"))
}

fn read_response(stream: &mut TcpStream, deadline: Instant) -> Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(body) = complete(&bytes)? {
            return Ok(body);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no full answer in time");
        stream.set_read_timeout(Some(at_least_a_moment(left)))?;
        let read = stream.read(&mut buffer).context("no answer")?;
        ensure!(read > 0, "the connection ended before the answer did");
        bytes.extend_from_slice(&buffer[..read]);
    }
}

/// The body, once head and body are there; it needs a `Content-Length`.
fn complete(bytes: &[u8]) -> Result<Option<String>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "status {status:?}");
    let length: usize = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .context("an answer without Content-Length")?;
    let body = &bytes[end + 4..];
    Ok((body.len() >= length).then(|| String::from_utf8_lossy(&body[..length]).into_owned()))
}

/// A timeout of zero would mean "wait for ever".
fn at_least_a_moment(timeout: Duration) -> Duration {
    timeout.max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_when_its_length_is_there() {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
        assert_eq!(complete(head).unwrap(), None);
        assert_eq!(complete(&[head, b"ok".as_slice()].concat()).unwrap(), Some("ok".to_owned()));
        assert!(complete(b"HTTP/1.1 503 No\r\n\r\n").is_err());
    }

    #[test]
    fn the_answer_names_task_node_and_client() {
        let answer =
            parse_answer(r#"{"task":"web.1","node":"n1","client":"10.88.0.100:1234"}"#).unwrap();
        assert_eq!((answer.task.as_str(), answer.node.as_str()), ("web.1", "n1"));
        assert_eq!(answer.client.to_string(), "10.88.0.100:1234");
        assert!(parse_answer("hello").is_err());
    }

    #[test]
    fn a_silent_server_is_given_up_in_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let started = Instant::now();
        let timeout = Duration::from_millis(100);
        assert!(get(listener.local_addr().unwrap(), "/", timeout).is_err());
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}
