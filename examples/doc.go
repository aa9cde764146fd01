// Package examples holds services that stand on the stream, one in each of three
// languages, and a page; README.md beside this file says what each is for. Nothing
// imports them. What is tested here is that they do, through everything that goes wrong,
// what they say:
//
//	go test -tags examples ./examples -python PATH -node FOLDER -browser FOLDER -nats-command PATH
//
// .ci/run shows how the four are had. The same test runs docs/consume.md.
package examples
