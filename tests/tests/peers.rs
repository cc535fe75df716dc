//! The foreign programs are there when they are required.

use belfry_tests::peer;

#[test]
fn no_required_peer_is_missing() {
    if !peer::required() {
        return;
    }
    for peer in peer::ALL {
        assert!(peer.find().iter().all(Option::is_some), "{} is missing", peer.name);
    }
    let built_with =
        [cfg!(peer_postfix), cfg!(peer_swaks), cfg!(peer_python), cfg!(peer_prometheus)];
    assert_eq!(built_with, [true; 4], "the tests were built before the peers were installed");
}
