use super::*;
use proptest::prelude::*;
use std::vec;

/// A request's arguments, `None` for too large.
type Words = Option<Vec<Vec<u8>>>;

/// Reads a stream that arrives in `pieces`.
fn read(pieces: &[&[u8]], max_bulk: usize) -> (Vec<Words>, Option<ProtocolError>) {
    let (mut parser, mut buffer, mut requests) = (Parser::new(max_bulk), Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match parser.parse(&buffer) {
                Step::Incomplete => break,
                Step::Request(end) => {
                    requests.push(Some(parser.arguments(&buffer).from(0).map(Vec::from).collect()));
                    parser.reset();
                    buffer.drain(..end);
                }
                Step::TooLarge(end) => {
                    requests.push(None);
                    parser.reset();
                    buffer.drain(..end);
                }
                Step::Discard(n) => {
                    buffer.drain(..n);
                }
                Step::Error(error) => return (requests, Some(error)),
            }
        }
    }
    (requests, None)
}

fn words(list: &[&str]) -> Words {
    Some(list.iter().map(|word| Vec::from(word.as_bytes())).collect())
}

#[test]
fn requests_are_read() {
    let (requests, error) =
        read(&[b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\nPING\r\n\r\n*0\r\nset a \"b \\x41\\n\" 'c\\'d'\n"], 100);
    assert_eq!(error, None);
    assert_eq!(
        requests,
        vec![
            words(&["GET", "k"]),
            words(&["PING"]),
            words(&[]),
            words(&[]),
            words(&["set", "a", "b A\n", "c'd"])
        ]
    );
}

#[test]
fn nonsense_is_refused_with_the_messages_of_redis() {
    for (stream, error) in [
        ("*x\r\n", ProtocolError::BadCount),
        ("*1048577\r\n", ProtocolError::BadCount),
        ("*1\r\nGET", ProtocolError::NotABulk(b'G')),
        ("*1\r\n$-1\r\n", ProtocolError::BadLength),
        ("*1\r\n$536870913\r\n", ProtocolError::BadLength),
        ("get \"a\n", ProtocolError::UnbalancedQuotes),
        ("get \"a\"b\n", ProtocolError::UnbalancedQuotes),
    ] {
        assert_eq!(read(&[stream.as_bytes()], 100).1, Some(error), "{stream:?}");
    }
    let long = [b'1'; MAX_LINE + 10];
    assert_eq!(read(&[&long], 100).1, Some(ProtocolError::InlineTooLong));
    assert_eq!(read(&[b"*", &long], 100).1, Some(ProtocolError::CountTooLong));
    assert_eq!(read(&[b"*1\r\n$", &long], 100).1, Some(ProtocolError::LengthTooLong));
}

#[test]
fn a_too_large_argument_is_read_over_and_the_next_request_is_found() {
    let stream = b"*3\r\n$3\r\nSET\r\n$20\r\n01234567890123456789\r\n$1\r\nv\r\n*1\r\n$4\r\nPING\r\n";
    for cut in 0..stream.len() {
        let (requests, error) = read(&[&stream[..cut], &stream[cut..]], 10);
        assert_eq!((requests, error), (vec![None, words(&["PING"])], None), "{cut}");
    }
}

#[test]
fn an_abandoned_request_is_read_over() {
    let stream = b"*3\r\n$3\r\nSET\r\n$20\r\n01234567890123456789\r\n$1\r\nv\r\n*1\r\n$4\r\nPING\r\n";
    for cut in 4..46 {
        let mut parser = Parser::new(1000);
        let mut buffer = stream[..cut].to_vec();
        assert_eq!(parser.parse(&buffer), Step::Incomplete);
        let n = parser.abandon(buffer.len()).unwrap();
        buffer.drain(..n);
        buffer.extend_from_slice(&stream[cut..]);
        let mut ends = 0;
        loop {
            match parser.parse(&buffer) {
                Step::Discard(n) => {
                    buffer.drain(..n);
                }
                Step::TooLarge(end) => {
                    ends += 1;
                    parser.reset();
                    buffer.drain(..end);
                }
                Step::Request(_) => break,
                other => panic!("{cut}: {other:?}"),
            }
        }
        assert_eq!(ends, 1);
        assert_eq!(parser.arguments(&buffer).at(0), b"PING");
    }
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let arguments = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 1..6);
    (arguments, any::<bool>()).prop_map(|(arguments, inline)| {
        let mut bytes = Vec::new();
        if inline {
            for argument in &arguments {
                bytes.push(b'"');
                for byte in argument {
                    bytes.extend_from_slice(std::format!("\\x{byte:02x}").as_bytes());
                }
                bytes.extend_from_slice(b"\" ");
            }
            bytes.extend_from_slice(b"\r\n");
        } else {
            bytes.extend_from_slice(std::format!("*{}\r\n", arguments.len()).as_bytes());
            for argument in &arguments {
                bytes.extend_from_slice(std::format!("${}\r\n", argument.len()).as_bytes());
                bytes.extend_from_slice(argument);
                bytes.extend_from_slice(b"\r\n");
            }
        }
        bytes
    })
}

/// Streams of requests, with and without damage.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let damage = proptest::option::of((any::<proptest::sample::Index>(), any::<u8>()));
    (proptest::collection::vec(request(), 1..5), damage).prop_map(|(requests, damage)| {
        let mut bytes = requests.concat();
        if let Some((index, byte)) = damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), max in 0usize..50) {
        read(&[&bytes], max);
    }

    #[test]
    fn any_split_reads_the_same(bytes in stream(), cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8), max in 0usize..40) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        prop_assert_eq!(read(&pieces, max), read(&[&bytes], max));
    }
}
