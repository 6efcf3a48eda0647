// Package fulcio holds the generated messages and gRPC service of Fulcio's v2 API.
package fulcio

//go:generate protoc --proto_path=. --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative fulcio.proto
