# No package holds Grafana: a server that wants of its surroundings what Grafana wants, and answers its health check.
ARG PROMETHEUS
FROM ${PROMETHEUS}
USER root
RUN install -d -o 472 /var/lib/grafana
COPY grafana.py /
USER 472:0
ENTRYPOINT ["python3", "/grafana.py"]
