//! The foreign programs are there when they are required.

use belfry_tests::peer;

#[test]
fn no_required_peer_is_missing() {
    if !peer::required() {
        return;
    }
    for peer in peer::ALL {
        for program in peer.programs {
            assert!(peer::find(program).is_some(), "{program} is missing");
        }
    }
    let built_with = [cfg!(peer_postfix), cfg!(peer_swaks), cfg!(peer_python)];
    assert_eq!(built_with, [true; 3], "the tests were built before the peers were installed");
}
