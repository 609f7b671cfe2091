# Builds either service: docker build --build-arg SERVICE=api .
FROM node:24-trixie-slim AS build
WORKDIR /app
COPY .npmrc package.json package-lock.json ./
# The optional dependencies only contain Node for machines with an older version; the image has its own.
RUN --mount=type=cache,target=/root/.npm npm ci --omit=optional
COPY tsconfig.json tsconfig.build.json ./
COPY chassis chassis
COPY contract contract
COPY services services
RUN npm run build && mkdir /data

# For docker-compose.watch.yml: the service from source, reloaded on change.
FROM build AS dev
ARG SERVICE
# npm writes its logs under HOME.
ENV SERVICE=${SERVICE} LOG_FORMAT=pretty HOME=/tmp
RUN chown -R 65532:65532 dist /data
USER 65532:65532
CMD ["sh", "-c", "exec npm run -s dev:$SERVICE"]

FROM node:24-trixie-slim AS production-dependencies
WORKDIR /app
COPY .npmrc package.json package-lock.json ./
RUN --mount=type=cache,target=/root/.npm npm ci --omit=dev --omit=optional

FROM gcr.io/distroless/nodejs24-debian13:nonroot AS runtime
ARG SERVICE
WORKDIR /app
ENV NODE_ENV=production
COPY --from=production-dependencies /app/node_modules node_modules
COPY --from=build /app/dist/chassis chassis
COPY --from=build /app/dist/contract contract
COPY --from=build /app/dist/services/${SERVICE} services/${SERVICE}
# A named volume takes over the owner of the folder that it covers.
COPY --from=build --chown=65532:65532 /data /data
# One name for either program: the entrypoint is node itself, and nothing here could expand a variable.
COPY <<EOF main.js
require('./services/${SERVICE}/main.js');
EOF
CMD ["main.js"]
