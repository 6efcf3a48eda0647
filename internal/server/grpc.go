package server

import (
	"context"
	"log/slog"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// GRPCMetrics counts calls as grpc_server_*, with the labels that upstream's servers have.
func GRPCMetrics(reg prometheus.Registerer) ([]grpc.ServerOption, error) {
	m := grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram())
	if err := reg.Register(m); err != nil {
		return nil, err
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(m.UnaryServerInterceptor()), grpc.ChainStreamInterceptor(m.StreamServerInterceptor())}, nil
}

// GRPCRecover answers calls whose handler panicked with Internal. gRPC runs handlers outside the goroutine of the HTTP request, where
// Edge does not see them; without it the process would end. Name it after the options that measure.
func GRPCRecover(logger *slog.Logger) []grpc.ServerOption {
	recovered := func(ctx context.Context, err *error) {
		if reached := recover(); reached != nil {
			logPanic(ctx, logger, reached)
			*err = status.Error(codes.Internal, "internal error [reason=panic id="+RequestID(ctx)+"]")
		}
	}
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
			defer recovered(ctx, &err)
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			defer recovered(stream.Context(), &err)
			return next(srv, stream)
		}),
	}
}
