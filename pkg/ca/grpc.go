package ca

import (
	"context"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/gen/fulcio"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/server"
)

// RegisterGRPC adds dev.sigstore.fulcio.v2.CA and grpc.health.v1.Health to s. sigstore-java
// before its HTTP client and go-witness call them on the port of the HTTP API. Create the
// server with GRPCOptions, and serve it through Bounded.
func (h *Handler) RegisterGRPC(s grpc.ServiceRegistrar) {
	fulcio.RegisterCAServer(s, h)
	grpc_health_v1.RegisterHealthServer(s, health{})
}

// GRPCOptions are for a server that has no other services.
func (h *Handler) GRPCOptions() []grpc.ServerOption {
	return append(h.GRPCMetrics(), grpc.MaxRecvMsgSize(MaxBody))
}

// GRPCMetrics are for a server whatever its services: it is counted as Fulcio's is.
func (h *Handler) GRPCMetrics() []grpc.ServerOption {
	m := h.ca.metrics.grpc
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(m.UnaryServerInterceptor()), grpc.ChainStreamInterceptor(m.StreamServerInterceptor())}
}

// Bounded puts a gRPC server under the limits of HTTP bodies. What one message may have is its own.
func (h *Handler) Bounded(g http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limit.Body{Time: bodyTime, Bytes: h.options.Load().Bytes}.Stream(g).ServeHTTP(w, r)
	})
}

// CreateSigningCertificate implements the gRPC service.
func (h *Handler) CreateSigningCertificate(ctx context.Context, m *fulcio.CreateSigningCertificateRequest) (*fulcio.SigningCertificate, error) {
	started := time.Now()
	md, _ := metadata.FromIncomingContext(ctx)
	given := ""
	if ids := md.Get("x-request-id"); len(ids) == 1 {
		given = ids[0]
	}
	id := server.FitRequestID(given)
	if server.RequestID(ctx) == "" { // else it is in the answer already
		_ = grpc.SetHeader(ctx, metadata.Pairs("x-request-id", id)) // fails only outside a server
	}
	issued, err := h.issueGRPC(ctx, m, md, id)
	code := codes.OK
	defer func() {
		h.ca.metrics.latency.WithLabelValues(code.String(), "grpc").Observe(time.Since(started).Seconds())
	}()
	if err != nil {
		a := h.refuse(ctx, err, id, fulcio.CA_CreateSigningCertificate_FullMethodName)
		code = a.code
		if a.retry != "" {
			_ = grpc.SetTrailer(ctx, metadata.Pairs("retry-after", a.retry))
		}
		return nil, status.Error(a.code, a.message)
	}
	return response(issued), nil
}

func (h *Handler) issueGRPC(ctx context.Context, m *fulcio.CreateSigningCertificateRequest, md metadata.MD, id string) (*Issued, error) {
	// A server that others share takes larger messages.
	if n := proto.Size(m); n > MaxBody {
		return nil, fault.New(fault.TooLarge, "request_too_large", nil, textTooLarge)
	}
	outer := ""
	switch tokens := md.Get("oidcidentitytoken"); {
	case len(tokens) == 1:
		outer = tokens[0]
	case len(tokens) > 1:
		return nil, fault.New(fault.Unauthentic, "malformed_token", nil, "%s: the metadata carries several tokens", textToken)
	}
	req, err := request(m, outer, id)
	if err != nil {
		return nil, err
	}
	return h.issue(ctx, req, caller(ctx, md))
}

// caller stands for the HTTP request below a gRPC call, as far as it says where that comes from.
func caller(ctx context.Context, md metadata.MD) *http.Request {
	r := &http.Request{Header: http.Header{"X-Forwarded-For": md.Get("x-forwarded-for")}}
	if p, ok := peer.FromContext(ctx); ok {
		r.RemoteAddr = p.Addr.String()
	}
	return r
}

// GetTrustBundle implements the gRPC service.
func (h *Handler) GetTrustBundle(context.Context, *fulcio.GetTrustBundleRequest) (*fulcio.TrustBundle, error) {
	return h.trustBundle(), nil
}

// GetConfiguration implements the gRPC service.
func (h *Handler) GetConfiguration(context.Context, *fulcio.GetConfigurationRequest) (*fulcio.Configuration, error) {
	return h.configuration(), nil
}

// health answers Check with SERVING while the process lives, as upstream; Watch and List stay
// unimplemented.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (health) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}
