# The image of web, worker, beat, flower and migrations. docker-compose.yml has the command of each.
FROM python:3.12-slim

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN useradd --system --create-home --home-dir /home/kasoko kasoko
WORKDIR /srv/kasoko
COPY requirements.txt .
RUN pip install --no-cache-dir --require-hashes --requirement requirements.txt
COPY manage.py ./
COPY api ./api
COPY users ./users
COPY markets ./markets
COPY payments ./payments
# .kasoko has the collected static files. /book has the simulator's book of payments.
RUN install --directory --mode=0700 --owner=kasoko .kasoko /book
USER kasoko
# Production serves the console's files from .kasoko only. The settings require these variables; nothing connects here.
RUN DATABASE_URL=postgresql://none/none CELERY_BROKER_URL=redis://none/0 DJANGO_SECRET_KEY=none \
    python manage.py collectstatic --noinput
EXPOSE 8000
CMD ["gunicorn", "api.wsgi", "--bind=0.0.0.0:8000", "--workers=2", "--threads=8", "--no-control-socket"]
