//! Servers of python applications: uvicorn on a Unix path, and granian, several processes of which bind one port.

use std::net::SocketAddr;

use master_process_tests::{fixtures, load, skip};

use crate::built;
use crate::network::needs;
use crate::run::{serves_and_reloads, text_of, words, write};

#[test]
fn two_uvicorn_on_one_unix_path_lose_no_request_in_six_reloads() {
    let name = "two_uvicorn_on_one_unix_path_lose_no_request_in_six_reloads";
    needs!(name, "python3");
    let python = match built::python("python") {
        Ok(python) => python,
        Err(reason) => skip!(reason),
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("uvicorn.sock");
    let app = text_of(&fixtures::folder().join("asgi.py"));
    // uvicorn unlinks the path before it binds it.
    let command = ["env".into(), format!("LISTEN={}", text_of(&path)), python, app];
    serves_and_reloads(2, 6, &command, &move || load::get(path.as_path(), "/"));
}

const APP: &str = "
import os
async def app(scope, receive, send):
    assert scope['type'] == 'http'
    body = str(os.getpid()).encode()
    headers = [(b'content-length', str(len(body)).encode())]
    await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
    await send({'type': 'http.response.body', 'body': body})
";

#[test]
fn a_granian_of_two_processes_loses_no_request_in_twelve_reloads() {
    const PORT: u16 = 8000;
    let name = "a_granian_of_two_processes_loses_no_request_in_twelve_reloads";
    needs!(name, "python3");
    let granian = match built::python("granian") {
        Ok(granian) => granian,
        Err(reason) => skip!(reason),
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(folder.path(), "app.py", APP);
    let options = format!(
        "--interface asgi --host 127.0.0.1 --port {PORT} --workers 2 --no-ws --log-level warning --working-dir {}",
        text_of(folder.path())
    );
    let mut command = vec![granian];
    command.extend(words(&options));
    command.push("app:app".into());
    let address = SocketAddr::from(([127, 0, 0, 1], PORT));
    serves_and_reloads(1, 12, &command, &move || load::get(address, "/"));
}
